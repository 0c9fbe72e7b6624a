"""Every method of `METHODS` on a tiny model: no-op at the start, only its parameters train, saved = loaded."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import causal_lm
from torch.testing import assert_close

from tunecli.config.errors import UserError
from tunecli.config.paths import option_names
from tunecli.config.peft import NOT_TRAINABLE_YET, PEFT_SCHEMAS, LoraConfig, PeftConfig
from tunecli.peft_methods import METHODS
from tunecli.peft_methods.composition import inject, load_adapters, save_adapters

IDS = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(lm) -> torch.Tensor:
    with torch.no_grad():
        return lm.eval()(IDS).logits


def disturbed(lm, seed: int = 1):
    """Trained parameters moved away from their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return lm


def test_table_schemas_and_yaml_agree() -> None:
    assert set(METHODS) | NOT_TRAINABLE_YET == set(PEFT_SCHEMAS)
    assert not set(METHODS) & NOT_TRAINABLE_YET
    assert set(option_names("peft")) == set(PEFT_SCHEMAS) | {"full"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "phi3"])
class TestEveryMethod:
    def methods(self, method: str) -> dict[str, PeftConfig]:
        return {method: PEFT_SCHEMAS[method]()}

    def test_it_changes_nothing_at_the_start(self, method: str, architecture: str) -> None:
        lm = causal_lm(architecture)
        before = logits(lm)
        inject(lm, self.methods(method), seed=0)
        assert_close(logits(lm), before, atol=1e-6, rtol=0)

    def test_only_its_parameters_get_gradients(self, method: str, architecture: str) -> None:
        lm = causal_lm(architecture)
        base = {id(parameter) for parameter in lm.parameters()}
        inject(lm, self.methods(method), seed=0)
        lm.train()(IDS, labels=IDS).loss.backward()
        added = [p for p in lm.parameters() if id(p) not in base]
        assert added and all(p.requires_grad and p.grad is not None for p in added)
        assert all(not p.requires_grad and p.grad is None for p in lm.parameters() if id(p) in base)

    def test_saved_equals_loaded_also_by_plain_peft(self, method: str, architecture: str, tmp_path: Path) -> None:
        lm = causal_lm(architecture)
        inject(lm, self.methods(method), seed=0)
        expected = logits(disturbed(lm))
        save_adapters(lm, self.methods(method), tmp_path, base="somewhere")
        ours = causal_lm(architecture)
        assert load_adapters(ours, [tmp_path / method]) == [method]
        assert_close(logits(ours), expected, atol=1e-6, rtol=0)
        theirs = peft.PeftModel.from_pretrained(causal_lm(architecture), str(tmp_path / method))
        assert_close(logits(theirs), expected, atol=1e-6, rtol=0)

    def test_switched_off_it_gives_the_base(self, method: str, architecture: str) -> None:
        lm = causal_lm(architecture)
        before = logits(lm)
        inject(lm, self.methods(method), seed=0)
        disturbed(lm)
        assert not torch.allclose(logits(lm), before, atol=1e-3)
        for module in lm.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(False)
        assert_close(logits(lm), before, atol=1e-6, rtol=0)

    def test_the_loss_falls(self, method: str, architecture: str) -> None:
        lm = causal_lm(architecture)
        inject(lm, self.methods(method), seed=0)
        optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(8):
            loss = lm.train()(IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1

    def test_the_seed_alone_decides_where_it_starts(self, method: str, architecture: str) -> None:
        def start(seed: int) -> torch.Tensor:
            lm = causal_lm(architecture)
            torch.rand(seed + 1)  # what the process drew before must not matter
            inject(lm, self.methods(method), seed=seed)
            return torch.cat([p.detach().flatten() for p in lm.parameters() if p.requires_grad])

        assert torch.equal(start(0), start(0))
        assert not torch.equal(start(0), start(1))


def test_lora_equals_pefts_own() -> None:
    """Same weights in our injected model and in peft's wrapper: the same loss and gradients."""
    ours, theirs = causal_lm(), causal_lm()
    inject(ours, {"lora": LoraConfig(r=4, lora_alpha=8)}, seed=0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(theirs, config)
    mine = [p for p in disturbed(ours).parameters() if p.requires_grad]
    others = [p for p in wrapped.parameters() if p.requires_grad]
    assert [p.shape for p in mine] == [p.shape for p in others]
    for one, other in zip(mine, others, strict=True):
        other.data.copy_(one.data)
    losses = [lm.train()(IDS, labels=IDS).loss for lm in (ours, wrapped)]
    for loss in losses:
        loss.backward()
    assert_close(losses[0], losses[1], atol=1e-6, rtol=0)
    for one, other in zip(mine, others, strict=True):
        assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_two_loras_at_once_are_both_trained_and_both_saved(tmp_path: Path) -> None:
    methods = {"lora": LoraConfig(r=4), "second": LoraConfig(r=2, target_modules=["q_proj"])}
    lm = causal_lm()
    inject(lm, methods, seed=0)
    lm.train()(IDS, labels=IDS).loss.backward()
    for name in methods:
        assert any(f"tune_{name}." in n and p.grad is not None for n, p in lm.named_parameters())
    expected = logits(disturbed(lm))
    save_adapters(lm, methods, tmp_path, base="somewhere")
    loaded = causal_lm()
    assert load_adapters(loaded, [tmp_path / "lora", tmp_path / "second"]) == ["lora", "second"]
    assert_close(logits(loaded), expected, atol=1e-6, rtol=0)


def test_targets_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"peft\.lora\.target_modules(.|\n)*q_proj"):
        inject(causal_lm(), {"lora": LoraConfig(target_modules=["c_attn"])}, seed=0)
