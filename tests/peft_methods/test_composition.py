"""Methods together, and what every one of them is compared with; each alone is in test_grid.py."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from architectures import inputs_of, logits_of, model_of
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tiny import causal_lm
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed

from tests.peft_methods.test_grid import SMALL
from tunecli.config.errors import UserError
from tunecli.config.paths import option_names
from tunecli.config.peft import (
    PEFT_SCHEMAS,
    BitFitConfig,
    HoulsbyConfig,
    Ia3Config,
    LoKrConfig,
    LoraConfig,
    LoraInit,
    ParallelConfig,
    PeftConfig,
    PfeifferConfig,
    Placement,
)
from tunecli.config.peft_facts import FACTS, NOT_SUPPORTED
from tunecli.peft_methods import METHODS, WITH_VIRTUAL_TOKENS
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.injection import activate
from tunecli.peft_methods.saving import load_adapters, save_adapters

SOME = [("llama", "causal_lm"), ("gpt2", "causal_lm"), ("t5", "seq2seq"), ("bert", "classification")]
IDS = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(lm) -> torch.Tensor:
    with torch.no_grad():
        return lm.eval()(IDS).logits


def test_table_schemas_and_yaml_agree() -> None:
    assert {*METHODS, *WITH_VIRTUAL_TOKENS} == set(PEFT_SCHEMAS) == set(FACTS) - {"full"}
    assert set(option_names("peft")) == set(PEFT_SCHEMAS) | {"full"}


def test_every_method_of_peft_is_here_or_refused_by_name() -> None:
    ours = set(PEFT_SCHEMAS)
    known = PEFT_TYPE_TO_CONFIG_MAPPING.items()
    of_peft = {kind.value.lower() for kind, config in known if config.__module__.startswith("peft.")}
    assert "boft" in of_peft
    assert of_peft <= ours | set(NOT_SUPPORTED)
    assert not ours & set(NOT_SUPPORTED)
    assert set(NOT_SUPPORTED.values()) <= ours


@pytest.mark.parametrize(
    ("method", "where", "fix"),
    [
        (LoKrConfig(decompose_factor=10**6), "decompose_factor", "peft.mine.decompose_factor=-1"),
        (HoulsbyConfig(reduction_factor=1e6), "reduction_factor", "or less"),
        (BitFitConfig(), "add_missing", "peft.mine.add_missing=true, which gives"),
        (PfeifferConfig(placement=Placement.after_norm), "placement", "peft.mine.placement=before_norm"),
        (LoraConfig(r=999, init_lora_weights=LoraInit.pissa), "r", "or peft.mine.init_lora_weights=default"),
        (Ia3Config(target_modules=["k_proj"], feedforward_modules=["up_proj"]), "feedforward_modules", ": k_proj"),
    ],
    ids=lambda value: getattr(value, "method", None),
)
def test_a_method_that_does_not_fit_is_refused_with_the_words_to_type(method: PeftConfig, where: str, fix: str):
    with pytest.raises(UserError) as refused:
        inject(causal_lm("llama"), {"mine": method}, seed=0)
    assert refused.value.where == f"peft.mine.{where}" and fix in refused.value.fix


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


def test_two_of_a_kind_on_one_composite_module_share_a_layer() -> None:
    """In their order; a third one, on what is inside, finds its way past both."""
    model = causal_lm()
    methods = {"one": ParallelConfig(bottleneck_size=8), "two": ParallelConfig(bottleneck_size=8)}
    inject(model, methods | {"lora": LoraConfig(r=4, target_modules=["up_proj"])}, seed=0)
    layer = model.model.layers[0].mlp
    assert list(layer.bottleneck_adapter) == layer.adapters_on() == ["tune_one", "tune_two"]
    assert "tune_lora" in layer.base_layer.up_proj.lora_A
    expected = logits(causal_lm())
    assert_close(logits(model), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(logits(disturbed(model)), expected, atol=1e-2)


PAIRS = [
    *(("vera", "lora"), ("lora", "vera"), ("bitfit", "ln_tuning"), ("ln_tuning", "bitfit"), ("ia3", "oft")),
    *(("loha", "houlsby"), ("lokr", "parallel")),
]


@pytest.mark.parametrize("order", PAIRS, ids="+".join)
@pytest.mark.parametrize(("architecture", "task"), [("llama", "causal_lm"), ("bert", "classification")], ids="-".join)
def test_pairs_around_one_another(architecture: str, task: str, order: tuple[str, str], tmp_path: Path) -> None:
    """Each is trained, both are loaded exactly, and each alone is what it is in a model of its own."""
    inputs, model = inputs_of(architecture, task), model_of(architecture, task)
    before = logits_of(model, inputs)
    inject(model, {method: PEFT_SCHEMAS[method](**SMALL.get(method, {})) for method in order}, seed=0)
    assert_close(logits_of(model, inputs), before, atol=2e-6, rtol=0)
    model.train()(**inputs).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    expected = logits_of(disturbed(model), inputs)
    save_adapters(model, order, tmp_path, base="somewhere")
    loaded = model_of(architecture, task)
    load_adapters(loaded, [tmp_path / method for method in order])
    assert torch.equal(logits_of(loaded, inputs), expected)
    for method in order:
        activate(loaded, [f"tune_{method}"])
        alone = model_of(architecture, task)
        load_adapters(alone, [tmp_path / method])
        assert_close(logits_of(loaded, inputs), logits_of(alone, inputs), atol=1e-5, rtol=0)


SIX: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=4),
    "ia3": Ia3Config(),
    "bitfit": BitFitConfig(add_missing=True),
    "houlsby": HoulsbyConfig(bottleneck_size=8),
    "parallel": ParallelConfig(bottleneck_size=8),
    "second": LoraConfig(r=2),
}


@pytest.mark.parametrize("order", [list(SIX), list(reversed(SIX))], ids=["inside out", "outside in"])
@pytest.mark.parametrize(("architecture", "task"), SOME, ids="-".join)
class TestSixAtOnce:
    def composed(self, architecture: str, task: str, order: list[str]) -> PreTrainedModel:
        model = model_of(architecture, task)
        inject(model, {name: SIX[name] for name in order}, seed=0)
        return model

    def test_they_start_as_the_base_and_train_together(self, architecture: str, task: str, order: list[str]) -> None:
        inputs = inputs_of(architecture, task)
        model = self.composed(architecture, task, order)
        assert_close(logits_of(model, inputs), logits_of(model_of(architecture, task), inputs), atol=2e-6, rtol=0)
        model.train()(**inputs).loss.backward()
        for name in order:
            own = [p for n, p in model.named_parameters() if f".tune_{name}" in n]
            assert own and all(p.requires_grad and p.grad is not None for p in own), name

    def test_they_are_loaded_exactly_and_each_is_a_folder_of_its_own(
        self, architecture: str, task: str, order: list[str], tmp_path: Path
    ) -> None:
        inputs = inputs_of(architecture, task)
        model = disturbed(self.composed(architecture, task, order))
        save_adapters(model, order, tmp_path, base="somewhere")
        assert json.loads((tmp_path / "composition.json").read_text()) == {"order": order}
        loaded = model_of(architecture, task)
        load_adapters(loaded, [tmp_path / name for name in order])
        assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
        for name in order:
            activate(loaded, [f"tune_{name}"])
            alone = peft.PeftModel.from_pretrained(model_of(architecture, task), str(tmp_path / name))
            assert_close(logits_of(loaded, inputs), logits_of(alone.base_model.model, inputs), atol=1e-5, rtol=0)
        activate(loaded, [])
        assert_close(logits_of(loaded, inputs), logits_of(model_of(architecture, task), inputs), atol=1e-6, rtol=0)
