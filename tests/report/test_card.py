"""Cards are valid for the Hub, say what was done, and show whatever comes from data or configuration as text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from merging import DATA

from tunecli.config.compose import compose_run
from tunecli.report.card import Merging, Result, code, escaped, for_hub, merged_card, public, run_card, run_label
from tunecli.report.card_use import Made, made_by

LORA = Made(kind=Result.adapter, methods={"lora": "lora"})
NASTY = "a|b`c``d</code><script>x</script>\x1b[31m\n# head"


def card(tmp_path: Path, *words: str, results: dict[str, float] | None = None) -> str:
    config = compose_run("smoke_sft_lora", list(words)).config
    return run_card(config, tmp_path, data=DATA, results=results or {"eval/loss": 1.25, "loss": 1.5})


def test_the_metadata_are_what_the_hub_reads(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card(tmp_path, "data=alpaca", "model.path=me/base", "data.validation=0.1"))
    raw = metadata_load(tmp_path / "README.md")
    assert raw is not None
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, raw["base_model_relation"]) == ("me/base", "adapter")
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-generation")
    assert data.datasets == [compose_run("smoke_sft_lora", ["data=alpaca"]).config.data.path]
    assert {"tunecli", "sft", "lora"} <= set(data.tags)
    assert data.license is None  # not known offline; `tune push --license`
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("loss", 1.25, "text-generation")


def test_local_data_are_no_datasets_and_paths_lose_their_folders(tmp_path: Path) -> None:
    text = card(tmp_path, "model.path=/home/me/secret/base", "data.path=/home/me/secret/rows.jsonl")
    assert "secret" not in text and "rows.jsonl" in text
    data = ModelCard(text).data
    assert data.datasets is None and data.base_model == "base"


def test_a_run_is_named_with_its_recipe_and_the_code_is_for_the_cards_own_folder(tmp_path: Path) -> None:
    text = card(tmp_path, "peft.lora.init_from=/home/me/outputs/sft/2026-01-05_10-00-00")
    assert "init_from `sft/2026-01-05_10-00-00`" in text
    assert 'path = "."' in text and "`tune predict . FILE`" in text and '"adapter/lora")' in text
    assert str(tmp_path) not in text


def test_the_sections_say_what_was_done(tmp_path: Path) -> None:
    text = card(tmp_path, "peft.lora.r=3", "seed=7")
    for wanted in ("## What it is", "## How it was made", "## Results", "## How to use", "## Limits"):
        assert wanted in text
    for wanted in ("lora: r 3", "50 examples, 912 trained tokens", "| seed | 7 |", "| `eval/loss` |  | 1.2500 |"):
        assert wanted in text
    assert "PeftModel.from_pretrained" in text and "tunecli.load(" in text


@pytest.mark.parametrize("words", [[], ["peft=full"], ["+peft@peft.second=lora"]])
def test_the_code_is_python(tmp_path: Path, words: list[str]) -> None:
    made = made_by(compose_run("smoke_sft_lora", words).config, tmp_path)
    local = card(tmp_path, *words)
    for text in (local, for_hub(local, made, "me/x", license="mit", base="you/base")):
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert len(blocks) == 2
        for block in blocks:
            compile(block, "card", "exec")


def test_what_comes_from_data_is_shown_as_text(tmp_path: Path) -> None:
    config = compose_run("smoke_sft_lora", []).config
    config.recipe = config.data.path = config.model.path = NASTY
    text = run_card(config, tmp_path, data=DATA, results={f"eval/loss/{NASTY}": 1.0})
    assert "\x1b" not in text and not re.search("^# head", text, re.MULTILINE)
    outside = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text.split("\n---\n", 1)[1])
    outside = re.sub(r"```python.*?```", "", outside, flags=re.DOTALL)
    assert "<script>" not in outside
    assert ModelCard(text).data.base_model == NASTY
    for row in re.findall(r"^\| .*", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4)


def test_code_spans_and_escapes() -> None:
    assert code("plain_name") == "`plain_name`"
    assert code("a`b") == "`` a`b ``"
    assert code("a|b\n\x1b") == "`a\\|b \\x1b`"
    assert escaped("<b>*x* [y](z) & snake_case") == "&lt;b&gt;\\*x\\* \\[y\\](z) &amp; snake_case"
    assert (public("/a/b/c"), public("me/base"), public("../x/y")) == ("c", "me/base", "y")


def test_a_merged_card_says_what_was_merged(tmp_path: Path) -> None:
    merging = Merging(base="me/base", revision="v2", adapters=("lora",), interpolation=0.5, quantization="nf4",
                      dtype="bfloat16", difference=0.25, largest_logit=30.0)  # fmt: skip
    text = merged_card(None, None, tmp_path / "m", merging)
    for wanted in (
        "`me/base`, revision `v2`",
        "nf4 in training",
        "| interpolation | 0.5",
        "0.25 at most",
        "bfloat16",
    ):
        assert wanted in text
    data = ModelCard(text).data
    assert (data.base_model, data.library_name) == ("me/base", "transformers")


def test_a_card_of_several_runs_names_each_and_says_whose_numbers_it_shows(tmp_path: Path) -> None:
    config = compose_run("smoke_sft_lora", []).config
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "eval/loss": 1.0}')
    runs = tuple(run_label(tmp_path / name, "smoke") for name in ("one", "two"))
    both = Merging(base="me/base", revision=None, adapters=("lora", "lora"), runs=runs, interpolation=1.0,
                   quantization="none", dtype="float32", difference=0.1, largest_logit=1.0)  # fmt: skip
    text = merged_card(config, tmp_path, tmp_path / "m", both)
    assert "| merged | `lora` of `one` (recipe `smoke`), `lora` of `two` (recipe `smoke`) |" in text
    assert "## How `one` (recipe `smoke`) was made" in text and "of `one` (recipe `smoke`), unmerged" in text
    average = replace(both, adapters=(), runs=runs[:1], interpolation=0.5)
    text = merged_card(config, tmp_path, tmp_path / "m", average)
    assert "a full fine-tuning run, `one` (recipe `smoke`)" in text
    assert "## Results of the model before averaging" in text


def test_of_a_local_base_the_code_says_what_to_put_in(tmp_path: Path) -> None:
    text = card(tmp_path, "model.path=/home/me/secret/base")
    assert 'base = "PATH/TO/base"  # it was a local folder' in text and "secret" not in text
    assert "AutoModelForCausalLM.from_pretrained(base)" in text
    assert 'base = "PATH/TO/base"' in for_hub(text, LORA, "me/x", license=None, base=None)
    assert 'base = "you/base"\n' in for_hub(text, LORA, "me/x", license=None, base="you/base")
    assert 'base = "me/base"\n' in card(tmp_path, "model.path=me/base")


def test_how_much_of_the_data_was_seen(tmp_path: Path) -> None:
    few = ["train.max_steps=5", "train.global_batch_size=4"]
    assert "| examples seen | 20 (40% of them) |" in card(tmp_path, *few)
    assert "| examples seen | 200 (4 passes over them) |" in card(tmp_path, "train.max_steps=50", few[1])
    assert "rows.jsonl (split train)" in card(tmp_path, "data.validation=/x/rows.jsonl")


def test_the_published_card_names_the_repository_and_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    text = card(tmp_path).replace("## Limits", "## Mine\n\nby hand\n\n## Limits")
    published = for_hub(text, LORA, "me/x", license="mit", base=None)
    data = ModelCard(published).data
    assert data.license == "mit" and data.base_model is None
    assert 'path = "me/x"\n' in published and str(tmp_path) not in published
    assert "by hand" in published and "## Limits" in published


@pytest.mark.parametrize("recipe", ["smoke_classify", "smoke_tag"])
def test_a_model_with_a_head_is_loaded_and_asked_as_one(tmp_path: Path, recipe: str) -> None:
    config = compose_run(recipe, []).config
    results = {"eval/accuracy": 0.75, "eval/f1_macro": 0.5, "eval/f1": 0.5}
    text = run_card(config, tmp_path, data=DATA, results=results)
    pipeline, name = {
        "smoke_classify": ("text-classification", "AutoModelForSequenceClassification"),
        "smoke_tag": ("token-classification", "AutoModelForTokenClassification"),
    }[recipe]
    data = ModelCard(text).data
    assert data.pipeline_tag == pipeline and {each.task_type for each in data.eval_results} == {pipeline}
    assert ("accuracy", 0.75) in [(each.metric_type, each.metric_value) for each in data.eval_results]
    assert "tunecli.load(" in text and "id2label" in text
    assert "PeftModel" not in text and "CausalLM" not in text and "generate" not in text
    whole = run_card(compose_run(recipe, ["peft=full"]).config, tmp_path, data=DATA, results={})
    assert f"{name}.from_pretrained" in whole
    made = Made(kind=Result.adapters, task=config.stage.task, methods={"lora": "lora", "head": "freeze"})
    published = for_hub(text, made, "me/x", license=None, base="you/base")
    assert 'path = snapshot_download("me/x")\n' in published and "id2label" in published and "Peft" not in published
    for each in (text, whole, published):
        for block in re.findall(r"```python\n(.*?)```", each, re.DOTALL):
            compile(block, "card", "exec")


def test_settings_are_in_the_words_of_a_recipe_without_what_goes_without_saying(tmp_path: Path) -> None:
    words = ["peft=[prompt_tuning,lora]", "peft.lora.use_dora=true", "peft.lora.rank_pattern={q_proj: 8}",
             "peft.prompt_tuning.init=text", "peft.prompt_tuning.init_text='Why?'"]  # fmt: skip
    [row] = re.findall(r"^\| method \| (.*) \|$", card(tmp_path, *words), re.MULTILINE)
    prompt, lora = row.split("; ")
    assert prompt == "prompt_tuning: num_virtual_tokens 20, init text, init_text `Why?`, init_top_k 5000"
    assert lora == "lora: r 4, lora_alpha 8, target_modules `all-linear`, use_dora true, rank_pattern `q_proj: 8`"


def test_published_alternatives_are_named_by_their_folders(tmp_path: Path) -> None:
    words = ["peft=[]", "+peft@peft.ann=lora", "+peft@peft.cay=prompt_tuning", "data.adapter_column=who"]
    config = compose_run("smoke_sft_lora", words).config
    text = for_hub(card(tmp_path, *words), made_by(config, tmp_path), "me/x", license=None, base="you/base")
    assert 'path = snapshot_download("me/x") + "/ann"  # or "/cay"\n' in text
    assert 'PeftModel.from_pretrained(model, "me/x", subfolder="ann")' in text and '"cay")' not in text
    assert "tunecli.prompt_ids" in text and "set_adapter" not in text


def test_a_merged_model_is_asked_as_its_run_was_trained(tmp_path: Path) -> None:
    merging = Merging(base="me/base", revision=None, adapters=("lora",), interpolation=1.0, quantization="none",
                      dtype="float32", difference=0.1, largest_logit=1.0)  # fmt: skip
    for words, wanted in ((["data=smoke_text"], 'tokenizer("Hello"'), ([], "apply_chat_template")):
        config = compose_run("smoke_sft_lora", words).config
        text = merged_card(config, tmp_path, tmp_path / "m", merging)
        assert text.count(wanted) == 2 and "prompt_ids" not in text  # no run directory would tell it
