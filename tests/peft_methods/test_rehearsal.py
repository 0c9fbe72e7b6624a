"""Methods that are tried on a model's shape: refused there if and only if the model itself would refuse them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.peft import (
    Attention,
    BitFitConfig,
    FreezeConfig,
    HoulsbyConfig,
    Ia3Config,
    LoHaConfig,
    LoraConfig,
    LoraInit,
    OftConfig,
    PeftConfig,
    PfeifferConfig,
    Placement,
    PrefixTuningConfig,
    PromptTokens,
    PromptTuningConfig,
    PTuningConfig,
    PTuningV2Config,
    VeraConfig,
)
from tunecli.config.run import RunConfig, with_head
from tunecli.models import load
from tunecli.models.load import load_model, load_tokenizer
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.rehearsal import expected_head, misfits
from tunecli.peft_methods.saving import save_adapters

MODELS = {
    "tiny_llama": ["smoke_sft_lora"],
    "tiny_gpt2": ["smoke_sft_lora", "model=tiny_gpt2"],
    "tiny_t5": ["smoke_seq2seq"],
    "tiny_bert": ["smoke_classify", "model=tiny_bert", "stage.labels=[a,b,c]"],
}
"""recipe and words for each"""

METHODS: dict[str, list[PeftConfig]] = {
    "no biases": [BitFitConfig()],
    "no such layer": [LoraConfig(target_modules=["nonsense"])],
    "no such pattern": [FreezeConfig(patterns=["nope"])],
    "no such ranks": [LoraConfig(rank_pattern={"nonsense": 4})],
    "too many layers": [FreezeConfig(last_n_layers=3)],
    "no such prefix layer": [PTuningV2Config(layers=[2])],
    "no such kind of attention": [PTuningV2Config(attention=[Attention.cross])],
    "no such norm": [PfeifferConfig(placement=Placement.after_norm)],
    "blocks": [OftConfig(oft_block_size=48)],
    "rank": [LoraConfig(r=100, init_lora_weights=LoraInit.pissa)],
    "shared weight": [LoraConfig(target_modules=["lm_head"], init_lora_weights=LoraInit.olora)],
    "words": [PromptTuningConfig(init_top_k=3)],
    "unused tokens": [PTuningConfig(tokens=PromptTokens.unused)],
    "invertible": [HoulsbyConfig(invertible=True)],
    "several": [BitFitConfig(), LoraConfig(target_modules=["nonsense"]), OftConfig(oft_block_size=48)],
    "fitting": [LoraConfig(use_dora=True), VeraConfig(), Ia3Config(), PrefixTuningConfig(), PTuningConfig()],
    "not on GPT-2": [LoHaConfig()],
}


def composed(recipe: str, *words: str) -> RunConfig:
    return with_head(compose_run(recipe, list(words)).config)


@cache
def recipe_of(name: str) -> RunConfig:
    return composed(*MODELS[name])


def stored(config: RunConfig) -> PreTrainedModel:
    task, head = config.stage.task, expected_head(config, 2)
    return load_model(config.model, dtype=torch.float32, device=torch.device("cpu"), task=task, head=head)


def refusal_of_the_model(config: RunConfig) -> str:
    try:
        inject(stored(config), config.peft, seed=0, tokenizer=load_tokenizer(config.model))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_the_shape_refuses_what_the_model_refuses(name: str, methods: list[PeftConfig]) -> None:
    config = with_head(replace(recipe_of(name), peft={method.method: method for method in methods}))
    said = "\n".join(str(problem) for problem in misfits(config, {}))
    assert said == refusal_of_the_model(config)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["peft=bitfit"], "peft.bitfit.add_missing: this model has no biases"),
        (["peft=oft", "peft.oft.oft_block_size=48"], "peft.oft.oft_block_size: 48 does not divide 64"),
        (["peft=oft", "model=tiny_gpt2"], "peft.oft.method: this method cannot adapt"),
        (["peft.lora.r=100", "peft.lora.init_lora_weights=eva"], "peft.lora.r: is 100 for"),
        (["model=tiny_t5"], "model.path: builtin:tiny_t5 (t5) is an encoder-decoder"),
    ],
    ids=str,
)
def test_it_says_where(words: list[str], expected: str) -> None:
    (problem,) = misfits(composed("smoke_sft_lora", *words), {})
    assert str(problem).startswith(expected)


def test_all_entries_are_named_at_once() -> None:
    several = {method.method: method for method in METHODS["several"]}
    found = misfits(replace(recipe_of("tiny_llama"), peft=several), {})
    assert [problem.where for problem in found] == [
        "peft.bitfit.add_missing",
        "peft.lora.target_modules",
        "peft.oft.oft_block_size",
    ]


def test_no_weight_is_read_and_no_number_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert not misfits(composed("smoke_sft_lora", "peft=[lora,p_tuning,prompt_tuning,vera]"), {})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_task_that_the_model_has_no_class_for() -> None:
    (problem,) = misfits(composed("smoke_mlm", "model=tiny_llama"), {})
    assert problem.what == "transformers has no AutoModelForMaskedLM for 'builtin:tiny_llama'"


def test_a_model_that_is_not_on_this_disk_says_nothing() -> None:
    assert misfits(composed("smoke_sft_lora", "peft=bitfit", "model.path=nobody/nothing"), {}) == []


@pytest.mark.parametrize("method", ["lora", "vera", "houlsby", "prefix_tuning", "prompt_tuning"])
def test_a_start_is_tried_too(method: str, tmp_path: Path) -> None:
    model = stored(recipe_of("tiny_llama"))
    inject(model, composed("smoke_sft_lora", f"peft={method}").peft, seed=0)
    save_adapters(model, [method], tmp_path, base="builtin:tiny_llama")
    later, folder = composed("smoke_sft_lora", f"peft={method}", f"peft.{method}.init_from=x"), tmp_path / method
    assert misfits(later, {method: folder}) == []
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, folder / "adapter_model.safetensors")
    (problem,) = misfits(later, {method: folder})
    assert "the checkpoint has no weights for 1 of its layers" in problem.what


HEAD = ["peft.lora.target_modules=[classifier]", "peft.lora.init_lora_weights=pissa"]


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["stage.labels=[a,b,c]", "peft.lora.r=3"], False),
        (["stage.labels=[a,b,c]", "peft.lora.r=4"], True),
        (["peft.lora.r=4"], False),  # the rows tell how many labels there are
        (["peft.lora.r=65"], True),
    ],
    ids=str,
)
def test_the_head_is_as_wide_as_its_labels(words: list[str], refused: bool) -> None:
    config = composed("smoke_classify", "model=tiny_bert", "peft=lora", *HEAD, *words)
    assert [problem.where for problem in misfits(config, {})] == (["peft.lora.r"] if refused else [])


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_no_virtual_tokens_where_the_decoder_reads_the_input_too(method: str) -> None:
    (problem,) = misfits(composed("smoke_classify", "model=tiny_t5", f"peft={method}"), {})
    assert problem.where == f"peft.{method}.method" and "decoder" in problem.what
    assert misfits(composed("smoke_tag", "model=tiny_t5", f"peft={method}"), {}) == []
