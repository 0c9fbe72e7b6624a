"""BitFit: the laws of a method on every architecture and task, and that a shift is the bias that it stands for."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers as T
from architectures import EVERY, inputs_of, logits_of, model_of
from tiny import causal_lm
from torch import nn
from torch.testing import assert_close
from tuners import ADAPTER, adapted, disturbed, gradients, losses, switch, trained

from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig, Quantization
from tunecli.config.peft import BitFitConfig
from tunecli.models.load import load_model
from tunecli.peft_methods.bitfit import BitFitLayer, peft_config

every_architecture = pytest.mark.parametrize(("architecture", "task"), EVERY)
HEADS = ("score", "classifier", "lm_head", "qa_outputs")
WITH_BIASES = [
    ("gpt2", "causal_lm"),
    ("bart", "seq2seq"),
    ("bert", "classification"),
    ("roberta", "classification"),
    ("bert", "tagging"),
]
ADDED = BitFitConfig(add_missing=True)


def shifts(model) -> list[BitFitLayer]:
    return [module for module in model.modules() if isinstance(module, BitFitLayer)]


def merge(model) -> None:
    for layer in shifts(model):
        layer.merge()


@every_architecture
class TestEveryArchitecture:
    def test_the_head_is_left_out(self, architecture: str, task: str) -> None:
        targets = peft_config(ADDED, model_of(architecture, task)).target_modules
        assert not [target for target in targets if target.startswith(HEADS)]


@pytest.mark.parametrize(("architecture", "task"), WITH_BIASES)
def test_it_equals_training_the_biases_themselves(architecture: str, task: str) -> None:
    inputs = inputs_of(architecture, task)
    shifted = adapted(model_of(architecture, task), BitFitConfig())
    plain = model_of(architecture, task)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith(".bias") and not name.startswith(HEADS))
    assert sum(p.numel() for p in trained(plain).values()) == sum(p.numel() for p in trained(shifted).values())
    for model in (shifted, plain):
        optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
        for _ in range(3):
            gradients(model, inputs)
            optimizer.step()
    start = logits_of(model_of(architecture, task), inputs)
    assert not torch.allclose(logits_of(plain, inputs), start, atol=1e-2)
    assert_close(logits_of(shifted, inputs), logits_of(plain, inputs), atol=1e-5, rtol=1e-4)
    merge(shifted)
    state = {name.replace(".base_layer", ""): value for name, value in shifted.state_dict().items()}
    for name in trained(plain):
        assert_close(state[name], plain.state_dict()[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [Quantization.nf4, Quantization.int8])
def test_a_quantized_base_trains_and_merges(kind: Quantization) -> None:
    config = ModelConfig(path="builtin:tiny_llama", quantization=kind)
    model = adapted(load_model(config, dtype=torch.float32, device=torch.device("cpu")), ADDED)
    inputs = inputs_of("llama", "causal_lm")
    before = losses(model, inputs)
    assert before[-1] < 0.97 * before[0]
    expected = gradients(model, inputs)
    with_adapter = logits_of(model, inputs)
    for name, gradient in gradients(model, inputs).items():
        assert torch.equal(gradient, expected[name]), name
    merge(model)
    assert_close(logits_of(model, inputs), with_adapter, atol=1e-4, rtol=1e-4)
    for layer in shifts(model):
        layer.unmerge()
    assert_close(logits_of(model, inputs), with_adapter, atol=0, rtol=0)


def test_plain_peft_loads_and_merges_the_folder(tmp_path: Path) -> None:
    inputs = inputs_of("bert", "classification")
    model = peft.get_peft_model(base := model_of("bert", "classification"), peft_config(ADDED, base))
    disturbed(model).save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(model_of("bert", "classification"), str(tmp_path))
    expected = logits_of(model, inputs)
    assert torch.equal(logits_of(loaded, inputs), expected)
    merged = loaded.merge_and_unload(safe_merge=True)
    assert not shifts(merged)
    assert_close(logits_of(merged, inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_merged_layer_that_is_switched_off_is_the_base() -> None:
    model, inputs = causal_lm(), inputs_of("llama", "causal_lm")
    before = logits_of(model, inputs)
    disturbed(adapted(model, ADDED))
    merge(model)
    switch(model, on=False)
    assert torch.equal(logits_of(model, inputs), before)
    assert all(layer.bias is None for layer in shifts(model))


def test_a_shift_that_is_not_finite_is_not_merged_where_that_is_checked() -> None:
    model = adapted(causal_lm(), ADDED)
    shifts(model)[0].bitfit_shift[ADAPTER].data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        shifts(model)[0].merge(safe_merge=True)


def test_a_model_without_biases_is_refused_with_the_fix() -> None:
    with pytest.raises(UserError, match=r"no biases to train(.|\n)*add_missing=true"):
        peft_config(BitFitConfig(), causal_lm())
    with pytest.raises(UserError, match=r"none of the target modules has a bias(.|\n)*add_missing=true"):
        peft_config(BitFitConfig(target_modules=["q_proj"]), causal_lm())


def test_target_modules_are_those_with_a_bias_or_linear() -> None:
    assert len(peft_config(BitFitConfig(target_modules=["c_attn"]), causal_lm("gpt2")).target_modules) == 2
    assert (
        len(peft_config(BitFitConfig(target_modules=["q_proj"], add_missing=True), causal_lm()).target_modules) == 2
    )
    with pytest.raises(UserError, match=r"target_modules: (.|\n)*q_proj"):
        peft_config(BitFitConfig(target_modules=["c_attn"], add_missing=True), causal_lm())
    model = model_of("bert", "classification")
    targets = peft_config(BitFitConfig(), model).target_modules
    assert {type(model.get_submodule(target)) for target in targets} == {nn.LayerNorm, nn.Linear}


def test_the_head_of_a_masked_language_model_is_left_out() -> None:
    with torch.device("meta"):
        model = T.BertForMaskedLM(T.BertConfig(num_hidden_layers=1))
    assert not [target for target in peft_config(BitFitConfig(), model).target_modules if target.startswith("cls")]
