"""Several adapters in one model: what is on is exactly what was saved, and with none it is exactly the base."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from tiny import causal_lm
from torch.testing import assert_close
from tuners import disturbed, text_logits

from tests.peft_methods.test_grid import SMALL
from tunecli.config.errors import UserError
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import load_adapters, save_adapters
from tunecli.peft_methods.switching import add_adapter, switch_to

IDS = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(0))
KINDS: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(r=4, target_modules="all-linear"),
    "attention": peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
    "whole_head": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "other_head": peft.LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["lm_head"]),
}
"""Adapters as plain peft trains them, of different layers."""


def logits(lm: torch.nn.Module) -> torch.Tensor:
    return text_logits(lm, IDS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """kind -> its folder, and the logits of the model that was saved"""
    found = {}
    for seed, (kind, config) in enumerate(KINDS.items()):
        wrapped = peft.get_peft_model(causal_lm(), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path_factory.mktemp(kind)
        wrapped.save_pretrained(str(folder))
        found[kind] = folder, logits(wrapped)
    return found


def test_each_alone_is_what_was_saved_and_none_is_the_base(saved):
    lm = causal_lm()
    base = logits(lm)
    for kind, (folder, _) in saved.items():
        add_adapter(lm, folder, kind)
    for kind in ("lora", "other_head", "dora", "whole_head", "attention", "lora"):
        switch_to(lm, [kind])
        assert_close(logits(lm), saved[kind][1], atol=1e-6, rtol=0)
        assert not torch.allclose(logits(lm), base, atol=1e-3)
        switch_to(lm, [])
        assert torch.equal(logits(lm), base)
    assert not any(parameter.requires_grad for parameter in lm.parameters())


def test_two_together_add_up(saved):
    """LoRA updates of different layers: the weights of both at once."""
    lm = causal_lm()
    for kind in ("attention", "lora"):
        add_adapter(lm, saved[kind][0], kind)
    switch_to(lm, ["attention", "lora"])
    merged = peft.PeftModel.from_pretrained(causal_lm(), str(saved["attention"][0])).merge_and_unload()
    both = peft.PeftModel.from_pretrained(merged, str(saved["lora"][0]))
    assert_close(logits(lm), logits(both), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all"),
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
    ],
    ids=["bias", "pissa"],
)
def test_what_changes_the_base_is_refused(config: peft.PeftConfig, tmp_path: Path):
    peft.get_peft_model(causal_lm(), config).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="merge it"):
        add_adapter(causal_lm(), tmp_path, "x")


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        peft.LoraConfig(r=2, target_modules=["c_attn"]),
    ],
    ids=["prompt learning", "another architecture"],
)
def test_what_cannot_be_injected_is_refused(config: peft.PeftConfig, tmp_path: Path):
    trained = causal_lm("gpt2")
    peft.get_peft_model(trained, config).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="cannot be put into LlamaForCausalLM"):
        add_adapter(causal_lm(), tmp_path, "x")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """method -> folder of an adapter of it; `METHOD_again`: a second one"""
    root = tmp_path_factory.mktemp("ours")
    for seed, method in enumerate(PEFT_SCHEMAS):
        for name in (method, f"{method}_again"):
            lm = causal_lm()
            inject(lm, {name: PEFT_SCHEMAS[method](**SMALL.get(method, {}))}, seed=seed)
            save_adapters(disturbed(lm, seed + (name != method) * 100), [name], root, base="somewhere")
    return {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir()}


def alone(folders: list[Path]) -> torch.Tensor:
    """Logits of a model that holds these and nothing else."""
    lm = causal_lm()
    load_adapters(lm, folders)
    return logits(lm)


@pytest.mark.parametrize("order", [1, -1], ids=["one order", "the other"])
def test_every_method_beside_all_others(ours: dict[str, Path], order: int) -> None:
    """All of them in one model, each of them twice: what is on is what it is in a model of its own."""
    lm = causal_lm()
    base = logits(lm)
    for name in list(ours)[::order]:
        add_adapter(lm, ours[name], f"tune_{name}")
    for name in ours:
        switch_to(lm, [f"tune_{name}"])
        assert_close(logits(lm), alone([ours[name]]), atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name} {text}")
        switch_to(lm, [])
        assert_close(logits(lm), base, atol=1e-6, rtol=0)


COMPOSITIONS = [
    ("lora", "houlsby", "bitfit", "ia3"),
    ("ia3", "lora", "ln_tuning", "lora_again"),
    ("oft", "vera", "parallel", "pfeiffer"),
    ("loha", "lokr", "ia3_again", "ia3"),
]


def test_compositions_beside_one_another(ours: dict[str, Path]) -> None:
    lm = causal_lm()
    base = logits(lm)
    for number, names in enumerate(COMPOSITIONS):
        for name in names:
            add_adapter(lm, ours[name], f"tune_{number}_{name}")
    for number in (0, 3, 1, 2, 0):
        names = COMPOSITIONS[number]
        switch_to(lm, [f"tune_{number}_{name}" for name in names])
        assert_close(logits(lm), alone([ours[name] for name in names]), atol=1e-5, rtol=0)
        switch_to(lm, [])
        assert_close(logits(lm), base, atol=1e-6, rtol=0)
