"""`tunecli.prompt_ids`: a prompt as training put it before an answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import finished_run

import tunecli
from tunecli.assembly.data import prepare_data
from tunecli.config.compose import compose_run, load_config
from tunecli.config.run import to_yaml
from tunecli.models.load import load_model, load_tokenizer
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import save_adapters


@pytest.mark.parametrize("words", [[], ["data.system=replace", "data.system_prompt='Be brief.'"]], ids=["", "system"])
@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "p_tuning"])
def test_it_is_what_the_answer_follows_in_training(method: str, words: list[str], tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    words = [f"peft=[{method}]", f"data.path={tmp_path / 'rows.jsonl'}", "data.validation=null", *words]
    run = finished_run(tmp_path / "run", *words)
    (tmp_path / "run" / "environment.json").write_text('{"data": {"train": {"formats": ["messages"]}}}')
    example = prepare_data(load_config(run / "config.yaml"), show_progress=False).train[0]
    ids, trained = example.input_ids, example.trained
    found = tunecli.prompt_ids(run, "Why?")
    assert found == ids[: int(trained.nonzero()[0])].tolist()
    assert found == tunecli.prompt_ids(run, [{"role": "user", "content": "Why?"}])


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
@pytest.mark.parametrize(
    ("recipe", "row", "more"),
    [
        ("smoke_classify", {"text": "Ada lives in York .", "label": "good"}, ["stage.labels=[bad,good]"]),
        ("smoke_tag", {"tokens": ["Ada", "lives", "in", "York", "."], "tags": ["O"] * 5}, ["stage.labels=[O,B-X]"]),
        ("smoke_mlm", {"text": "Ada lives in York ."}, []),
    ],
)
def test_of_a_model_that_reads_a_whole_text_it_is_that_text_as_in_training(
    recipe: str, row: dict[str, Any], more: list[str], method: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    words = [f"peft=[{method}]", f"data.path={tmp_path / 'rows.jsonl'}", "data.format=auto", "data.validation=null"]
    config = compose_run(recipe, [*words, *more]).config
    peft = {name: entry for name, entry in config.peft.items() if name != "head"}
    lm = load_model(config.model, dtype=torch.float32, device=torch.device("cpu"), task=config.stage.task)
    inject(lm, peft, seed=0)
    save_adapters(lm, peft, tmp_path / "run" / "adapter", base=config.model.path)
    load_tokenizer(config.model).save_pretrained(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(replace(config, peft=peft)))
    example = prepare_data(config, show_progress=False).train[0]
    assert tunecli.prompt_ids(tmp_path / "run", "Ada lives in York .") == example.input_ids.tolist()
