"""What `tune check` says about rows: everything that makes a fine-tune fail although it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunecli.assembly.data import prepare_data
from tunecli.config.compose import compose_run
from tunecli.config.errors import ConfigError, Problem
from tunecli.data import about
from tunecli.lint import LISTED, lint


@pytest.fixture(autouse=True)
def inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path / "cache"))


def chat(*contents: str, roles: str = "ua") -> dict:
    names = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": names[role], "content": text} for role, text in zip(roles, contents, strict=True)]}


GOOD = [chat(f"question {i}", f"answer {i}") for i in range(5)]


def checked(rows: list, *words: str) -> tuple[list[str], list[Problem], list[Problem]]:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    Path("train.jsonl").write_text(text)
    words = ("data=file", "data.path=train.jsonl", "data.validation=null", "train.eval_every=null", *words)
    return lint(compose_run("smoke_sft_lora", list(words)).config)


def odd(rows: list, *words: str) -> list[str]:
    return [f"{problem.where}: {problem.what}" for problem in checked(rows, *words)[2]]


def test_good_rows_give_facts_only():
    facts, bad, warned = checked(GOOD)
    assert not bad and not warned
    assert facts[0].startswith("training: train.jsonl (messages, told from the columns): 5 examples, ")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat("question", "question", "answer", roles="uua"), "roles out of order: train.jsonl row 6"),
        (chat("q", "a", "a", roles="uaa"), "roles out of order: train.jsonl row 6"),
        (chat("q", "", "q", "a", roles="uaua"), "empty answer: train.jsonl row 6"),
        (chat("", "a"), "empty question: train.jsonl row 6"),
        (chat("q", "a", "q", roles="uau"), "ends with a question: train.jsonl row 6"),
        (chat("say <|im_end|>", "a"), "special tokens in the text: train.jsonl row 6"),
        (GOOD[2], "training: 1 row repeats another; train.jsonl row 3 stands there 2 times"),
        (chat("q", "answer " * 300), "training: 1 of 6 examples lost its end: data.max_length=128"),
        (chat("q " * 300, "a"), "training: 1 of 6 rows is longer than data.max_length=128 allows and is left out"),
    ],
)
def test_what_is_odd_is_named_with_its_row(row, expected):
    (said,) = odd([*GOOD, row], "data.max_length=128")
    assert said.startswith(expected)


def test_rows_in_both_sets_are_said():
    Path("held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD[:2]))
    (said,) = odd(GOOD, "data.validation=held_out.jsonl", "train.eval_every=5")
    assert (
        said == "training: 2 of 5 rows are in the validation data too and are left out; the first: train.jsonl row 1"
    )


def test_bad_rows_are_all_listed_up_to_a_number():
    _, bad, warned = checked([*GOOD, "not json", {"messages": 3}])
    assert [problem.where for problem in bad] == ["train.jsonl row 6", "train.jsonl row 7"] and not warned
    _, bad, _ = checked([*GOOD, *["not json"] * (LISTED + 7)])
    assert len(bad) == LISTED + 1 and bad[-1].where == "7 more rows"


def test_bad_rows_are_said_where_too_few_are_left():
    """The rest cannot be split, which is not what is to be mended."""
    rows = [{"text": "a", "label": "yes"}, {"text": " ", "label": "no"}, {"text": "c"}]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data=file", "data.path=train.jsonl", "data.validation=0.5"]
    with pytest.raises(ConfigError) as found:
        lint(compose_run("smoke_classify", words).config)
    assert [problem.where for problem in found.value.problems] == ["train.jsonl row 2", "train.jsonl row 3"]


def test_labels_that_no_row_has_are_said():
    words = ["stage.verbalizer={positive: good, negative: poor, mixed: odd}"]
    (said,) = lint(compose_run("smoke_verbalize", words).config)[2]
    assert said.where == "stage.verbalizer" and said.what == "no training row has the label mixed"


def test_labels_that_are_not_learnt_are_said():
    facts, _, _ = checked([{"text": f"text {i}", "Label": "a"} for i in range(3)])
    assert "(text, told from the columns; Label is not read; stage=classify learns labels)" in facts[0]


def test_a_length_that_the_model_has_no_positions_for():
    words = ["data=file", "data.path=builtin:smoke_labels", "data.validation=null", "train.eval_every=null"]
    facts, bad, _ = lint(compose_run("smoke_classify", words).config)
    assert facts[0] == "data.max_length=512, not 2048: the model has no more positions" and not bad


def test_rows_that_are_skipped_are_no_errors():
    _, bad, (warned,) = checked([*GOOD, "not json"], "data.on_bad_row=skip")
    assert not bad and "1 of 6 rows cannot be used and is left out" in warned.what


def test_templates_are_looked_at():
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    Path("endless.jinja").write_text(template)
    said = odd(GOOD, "data.chat_template=endless.jinja")
    assert len(said) == 1 and "the model never learns to stop" in said[0]


def test_plain_text_needs_no_template():
    assert odd([{"text": f"text {i}"} for i in range(3)]) == []


@pytest.mark.parametrize(("words", "said"), [([], True), (["stage=pretrain", "data.overlong=split"], False)])
def test_pretraining_has_no_answers_that_a_template_would_set_apart(words: list[str], said: bool):
    config = compose_run("smoke_sft_lora", ["data.max_length=64", "data.overlong=split", *words]).config
    examples = prepare_data(config, show_progress=False).train
    assert examples is not None and examples.summary["split_rows"]
    (line,) = about.splits(config.data, config.stage, examples)
    assert "longer than data.max_length" in line and ("chat template" in line) == said


def test_streams_are_looked_at_without_reading_them_whole():
    facts, _, _ = checked([*GOOD * 300], "data.streaming=true")
    assert "streamed" not in facts[0] and "1,000 examples" in facts[0]
