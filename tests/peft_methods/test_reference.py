"""The reference is the policy at step 0, under every method, and stays where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import causal_lm
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed, text_logits, trained

from tests.peft_methods.test_grid import SMALL
from tunecli.config.peft import PEFT_SCHEMAS, HoulsbyConfig, LoraConfig, LoraInit, PeftConfig
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.reference import Reference, reference_of
from tunecli.peft_methods.saving import load_adapters, save_adapters

IDS = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(0))
CASES: dict[str, dict[str, PeftConfig]] = {
    **{method: {method: PEFT_SCHEMAS[method](**SMALL.get(method, {}))} for method in PEFT_SCHEMAS},
    "full": {},
    "dora": {"lora": LoraConfig(r=4, use_dora=True, lora_dropout=0.5)},
    "pissa": {"lora": LoraConfig(r=4, init_lora_weights=LoraInit.pissa)},
    "olora": {"lora": LoraConfig(r=4, init_lora_weights=LoraInit.olora)},
    "not from zero": {"houlsby": HoulsbyConfig(zero_start=False)},
    "two": {"lora": LoraConfig(r=4), "prefix_tuning": PEFT_SCHEMAS["prefix_tuning"](**SMALL["prefix_tuning"])},
}
COPIED = {"prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2", "full", "pissa", "olora"}
COPIED |= {"not from zero", "two"}


def check_law(lm: PreTrainedModel, reference: Reference) -> None:
    def asked() -> Tensor:
        with reference.on():
            assert not torch.is_grad_enabled() and not lm.training
            return text_logits(lm, IDS)

    first = text_logits(lm, IDS)
    assert_close(asked(), first, atol=2e-6, rtol=0)
    start, names = asked(), list(trained(lm))
    disturbed(lm).train()
    moved = {name: parameter.detach().clone() for name, parameter in trained(lm).items()}
    assert torch.equal(asked(), start)
    assert lm.training and list(trained(lm)) == names
    assert all(torch.equal(parameter, moved[name]) for name, parameter in trained(lm).items())
    assert not torch.allclose(text_logits(lm, IDS), start, atol=1e-3)
    assert torch.equal(asked(), start)


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_policy_at_step_0_and_does_not_move(case: str) -> None:
    lm = causal_lm()
    inject(lm, CASES[case], seed=0)
    reference = reference_of(lm, CASES[case])
    assert (reference.copies is not None) == (case in COPIED)
    check_law(lm, reference)


@pytest.mark.parametrize("second", ["trained on", "frozen below", "merged"])
def test_it_starts_where_an_earlier_run_ended(second: str, tmp_path: Path) -> None:
    first = {"lora": LoraConfig(r=4)}
    lm = causal_lm()
    inject(lm, first, seed=0)
    expected = text_logits(disturbed(lm), IDS)
    save_adapters(lm, first, tmp_path, base="somewhere")
    lm = causal_lm()
    if second == "trained on":
        methods = {"lora": LoraConfig(r=4, init_from="one")}
    elif second == "frozen below":
        methods = {"lora": LoraConfig(r=4, init_from="one", freeze=True), "new": LoraConfig(r=2)}
    else:
        load_adapters(lm, [tmp_path / "lora"])
        for module in list(lm.modules()):
            if hasattr(module, "merge") and hasattr(module, "lora_A"):
                module.merge()
        lm.save_pretrained(tmp_path / "merged", state_dict=_without_adapters(lm))
        methods = {"lora": LoraConfig(r=2)}
        lm = type(lm).from_pretrained(tmp_path / "merged")
    inject(lm, methods, seed=0, starts={"lora": tmp_path / "lora"} if second != "merged" else {})
    assert_close(text_logits(lm, IDS), expected, atol=1e-4, rtol=0)
    check_law(lm, reference_of(lm, methods))


def _without_adapters(lm: PreTrainedModel) -> dict[str, Tensor]:
    return {name.replace(".base_layer", ""): value for name, value in lm.state_dict().items() if "lora_" not in name}


def test_it_is_restored_after_an_error() -> None:
    lm = causal_lm()
    inject(lm, {}, seed=0)
    reference = reference_of(lm, {})
    expected = text_logits(disturbed(lm), IDS)
    with pytest.raises(RuntimeError), reference.on():
        raise RuntimeError
    assert torch.equal(text_logits(lm, IDS), expected)
