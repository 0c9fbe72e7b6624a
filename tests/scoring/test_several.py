"""Runs of several adapters and several tasks are scored as they were in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training import trained_run

from tests.scoring.test_scoring import logged, smoke_rows
from tunecli.cli import main
from tunecli.scoring import files, predicting, score

SHORT = ("train.max_steps=4", "train.eval_every=4", "train.save_every=4", "train.precision=fp32")
THREE = ("peft=[]", *(f"+peft@peft.{name}=lora" for name in "abc"), *SHORT)
ENSEMBLE = (*THREE, "data.adapter_column='*'", "train.learning_rate=0.03")
RUNS = {
    "answers": ("smoke_sft_lora", *ENSEMBLE, "evaluation.exact_match=3", "evaluation.max_new_tokens=4"),
    "words": ("smoke_verbalize", *ENSEMBLE),
    "rows": ("smoke_sft_lora", *THREE, "data.adapter_column=user"),
    "tasks": ("smoke_classify", *SHORT),
    "tasks_in_words": ("smoke_classify", "stage=verbalize", "stage.language_model=masked_lm", *SHORT),
}


def words_of(name: str, folder: Path) -> tuple[str, ...]:
    words = RUNS[name]
    if name == "rows":
        rows = [row | {"user": "abc"[i % 3]} for i, row in enumerate(smoke_rows("smoke"))]
        return (*words, f"data.path={written(folder / 'rows.jsonl', rows)}")
    return (*words, *mixed(folder)) if name.startswith("tasks") else words


def mixed(folder: Path) -> list[str]:
    rows = [
        row | {"label": {"positive": "good", "negative": "poor"}[row["label"]]} for row in smoke_rows("smoke_labels")
    ]
    yes = {"good": "yes", "poor": "no"}
    one = written(folder / "one.jsonl", rows)
    two = written(
        folder / "two.jsonl", [row | {"text": f"So: {row['text']}", "label": yes[row["label"]]} for row in rows]
    )
    mix = f"data.mix=[{{path: {one}, task: mood}}, {{path: {two}, task: fine}}]"
    return [mix, "data.path=null", "data.validation=0.3", "data.format=classification"]


def written(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained_run(folder / name, *words_of(name, folder)) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_those_that_training_logged(runs, name: str, tmp_path: Path) -> None:
    found = score(str(runs[name]))
    known = logged(runs[name])
    values = {each: metric.value for each, metric in found.metrics.items()}
    assert known and known == pytest.approx({each: values[each] for each in known}, abs=1e-5, rel=1e-5)
    for metric in found.metrics.values():
        assert metric.low is None or metric.low <= metric.value <= metric.high
    assert found.gap is not None
    files.write(found, tmp_path)
    other = score(str(runs[name]), ["train.micro_batch_size=3", "model.attention=padded"], gap=False)
    assert {each: metric.value for each, metric in other.metrics.items()} == pytest.approx(values, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("name", ["answers", "words"])
def test_a_question_to_several_adapters_is_one_line(runs, name: str) -> None:
    found = score(str(runs[name]), gap=False)
    places = [record["row"] for record in found.records]
    assert len(places) == len(set(places)) and found.data["examples"] == 3 * len(places)


def test_each_line_says_whose_adapter_it_is_of(runs, tmp_path: Path) -> None:
    found = score(str(runs["rows"]), gap=False).records
    assert len({record["adapter"] for record in found}) == 3
    assert all(record["adapter"] == "abc"[(record["row"] - 1) % 3] for record in found)
    rows = [{"prompt": "hi", "user": user} for user in "cab"]
    file = str(written(tmp_path / "hi.jsonl", rows))
    planned = predicting.plan(str(runs["rows"]), file, ["evaluation.max_new_tokens=2"])
    assert [record["adapter"] for record in predicting.predict(planned)] == ["c", "a", "b"]
    assert not any("adapter" in record for record in score(str(runs["words"]), gap=False).records)  # all of them


@pytest.mark.parametrize("name", ["tasks", "tasks_in_words"])
def test_each_task_has_its_table(runs, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = score(str(runs[name]), gap=False)
    assert [table.task for table in found.tables] == ["mood", "fine"]
    assert {each.label for each in found.tables[1].classes} == {"yes", "no"}
    mean = (found.metrics["accuracy/mood"].value + found.metrics["accuracy/fine"].value) / 2
    assert found.metrics["accuracy"].value == pytest.approx(mean)
    assert main(["eval", str(runs[name]), "--no-gap"]) == 0
    assert "fine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tasks", "tasks_in_words"])
def test_one_of_several_tasks_is_scored_alone(runs, name: str, tmp_path: Path) -> None:
    rows = [row | {"label": "yes" if row["label"] == "positive" else "no"} for row in smoke_rows("smoke_labels")[:12]]
    file = written(tmp_path / "some.jsonl", rows)
    found = score(str(runs[name]), ["data=mix", f"data.mix=[{{path: {file}, task: fine}}]"], gap=False)
    (table,) = found.tables
    assert table.task == "fine" and {each.label for each in table.classes} == {"yes", "no"}
    assert {record["task"] for record in found.records} == {"fine"} and "accuracy" in found.metrics
