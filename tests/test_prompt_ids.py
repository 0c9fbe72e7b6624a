"""`tunecli.prompt_ids`: a prompt as training put it before an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merging import finished_run

import tunecli
from tunecli.assembly.data import prepare_data
from tunecli.config.compose import load_config


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
