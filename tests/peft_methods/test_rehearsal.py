"""Methods that are tried on a model's shape: refused there if and only if the model itself would refuse them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig, with_head
from tunecli.models import load
from tunecli.models.load import load_model, load_tokenizer
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.rehearsal import expected_head, misfits
from tunecli.peft_methods.saving import save_adapters

MODELS = {
    "tiny_llama": ["recipe=smoke_sft_lora"],
    "tiny_gpt2": ["recipe=smoke_sft_lora", "model=tiny_gpt2"],
    "tiny_t5": ["recipe=smoke_seq2seq"],
    "tiny_bert": ["recipe=smoke_classify", "model=tiny_bert", "stage.labels=[a,b,c]"],
}
"""recipe's words for each"""

WORDS = {
    "no biases": ["peft=bitfit"],
    "no such layer": ["peft.lora.target_modules=[nonsense]"],
    "no such pattern": ["peft=freeze", "peft.freeze.patterns=[nope]"],
    "no such ranks": ["peft.lora.rank_pattern={nonsense: 4}"],
    "too many layers": ["peft=freeze", "peft.freeze.last_n_layers=3"],
    "no such prefix layer": ["peft=p_tuning_v2", "peft.p_tuning_v2.layers=[2]"],
    "no such kind of attention": ["peft=p_tuning_v2", "peft.p_tuning_v2.attention=[cross]"],
    "no such norm": ["peft=pfeiffer", "peft.pfeiffer.placement=after_norm"],
    "blocks": ["peft=oft", "peft.oft.oft_block_size=48"],
    "rank": ["peft.lora.r=100", "peft.lora.init_lora_weights=pissa"],
    "shared weight": ["peft.lora.target_modules=[lm_head]", "peft.lora.init_lora_weights=olora"],
    "words": ["peft=prompt_tuning", "peft.prompt_tuning.init_top_k=3"],
    "unused tokens": ["peft=p_tuning", "peft.p_tuning.tokens=unused"],
    "invertible": ["peft=houlsby", "peft.houlsby.invertible=true"],
    "several": ["peft=[bitfit,lora,oft]", "peft.lora.target_modules=[nonsense]", "peft.oft.oft_block_size=48"],
}
FITTING = ["lora", "loha", "vera", "ia3", "houlsby", "prefix_tuning", "p_tuning"]
WORDS |= {method: [f"peft={method}"] for method in FITTING}  # of which some fit some models only


def composed(*words: str) -> RunConfig:
    recipe, *overrides = words
    return with_head(compose_run(recipe.removeprefix("recipe="), overrides).config)


def stored(name: str) -> PreTrainedModel:
    config = composed(*MODELS[name])
    task, head = config.stage.task, expected_head(config, 2)
    return load_model(config.model, dtype=torch.float32, device=torch.device("cpu"), task=task, head=head)


def refusal_of_the_model(name: str, config: RunConfig) -> str:
    try:
        inject(stored(name), config.peft, seed=0, tokenizer=load_tokenizer(config.model))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_shape_refuses_what_the_model_refuses(name: str, words: list[str]) -> None:
    config = composed(*MODELS[name], *words)
    said = "\n".join(str(problem) for problem in misfits(config, {}))
    assert said == refusal_of_the_model(name, config)


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
    found = misfits(composed("smoke_sft_lora", *WORDS["several"]), {})
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
    model = stored("tiny_llama")
    inject(model, composed("smoke_sft_lora", f"peft={method}").peft, seed=0)
    save_adapters(model, [method], tmp_path, base="builtin:tiny_llama")
    later, folder = composed("smoke_sft_lora", f"peft={method}", f"peft.{method}.init_from=x"), tmp_path / method
    assert misfits(later, {method: folder}) == []
    tensors = load_file(folder / "adapter_model.safetensors")
    missing = sorted(tensors)[0]
    save_file(
        {name: value for name, value in tensors.items() if name != missing}, folder / "adapter_model.safetensors"
    )
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
