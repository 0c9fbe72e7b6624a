"""4- and 8-bit bases: gradients survive an evaluation pass, heads stay whole, adapters are fp32."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from tiny import RandomExamples, batching

from tunecli.config.model import ModelConfig, Quantization
from tunecli.config.peft import LoraConfig
from tunecli.data.batching import collate
from tunecli.models.load import load_model
from tunecli.models.policy import Policy, use_packed_attention
from tunecli.peft_methods.composition import inject

LAYERS = {
    Quantization.nf4: bnb.nn.Linear4bit,
    Quantization.fp4: bnb.nn.Linear4bit,
    Quantization.int8: bnb.nn.Linear8bitLt,
}


def quantized(kind: Quantization, dtype: torch.dtype = torch.float32) -> Policy:
    config = ModelConfig(path="builtin:tiny_llama", quantization=kind)
    lm = load_model(config, dtype=dtype, device=torch.device("cpu"))
    use_packed_attention(lm)  # no self-test: it would be an evaluation pass before the first gradients
    policy = Policy(lm, packed=True)
    inject(lm, {"lora": LoraConfig(r=4)}, seed=0)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:  # zeros would give lora_A no gradient to compare
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
    return policy.train()


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    (-policy(collate(RandomExamples([9, 5, 12]), range(3), batching())).sum()).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", [Quantization.nf4, Quantization.fp4, Quantization.int8])
def test_an_evaluation_pass_leaves_gradients_alone(kind: Quantization) -> None:
    """bitsandbytes repacks 4-bit weights in the first eval forward on a CPU with avx512_bf16; later gradients are
    then wrong without an error. Elsewhere this cannot fail."""
    policy = quantized(kind)
    before = gradients(policy)
    assert all(gradient.abs().sum() > 0 for gradient in before.values())
    policy.eval()
    with torch.no_grad():
        policy(collate(RandomExamples([9, 5, 12]), range(3), batching()))
        policy.lm.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
    after = gradients(policy.train())
    for name in before:
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("kind", LAYERS)
def test_linear_layers_are_quantized_and_the_head_is_not(kind: Quantization) -> None:
    policy = quantized(kind)
    assert any(isinstance(module, LAYERS[kind]) for module in policy.modules())
    assert type(policy.lm.get_output_embeddings()) is torch.nn.Linear


def test_adapters_on_a_bf16_base_are_fp32() -> None:
    policy = quantized(Quantization.nf4, dtype=torch.bfloat16)
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert trained and all(p.dtype is torch.float32 for p in trained)
    assert policy.lm.get_input_embeddings().weight.dtype is torch.bfloat16


def test_a_builtin_model_is_written_once_and_is_an_ordinary_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path))
    from tunecli.models.builtin import materialize

    folder = materialize("tiny_llama")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert materialize("tiny_llama") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert not list(folder.parent.glob(".*"))
