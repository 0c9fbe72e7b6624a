"""`tune predict`: the order of the rows, the same answers as an evaluation, and no row lost for another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training import trained_run

from tunecli.cli import main
from tunecli.config.data_checks import formats_for
from tunecli.config.errors import UserError
from tunecli.config.stage import Task
from tunecli.data.labels import Labels
from tunecli.evaluation.kinds import Kind
from tunecli.scoring import predicting, score
from tunecli.scoring.subject import labels_of
from tunecli.scoring.unlabelled import ANSWER, choose, completed


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("runs") / "classify", "smoke_classify", "train.learning_rate=3e-3")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("runs") / "tag", "smoke_tag")


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("train.max_steps=2", "evaluation.max_new_tokens=6")
    return trained_run(tmp_path_factory.mktemp("runs") / "sft", "smoke_sft_lora", *words)


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def predicted(run: Path, file: str, *words: str) -> list[dict]:
    return list(predicting.predict(predicting.plan(str(run), file, words)))


def test_texts_are_told_as_in_an_evaluation(classifier: Path, tmp_path: Path) -> None:
    evaluated = score(str(classifier), gap=False).records
    file = write(tmp_path / "rows.jsonl", [{"text": record["text"]} for record in evaluated])
    found = predicted(classifier, file)
    assert [record["row"] for record in found] == list(range(1, len(evaluated) + 1))
    for record, other in zip(found, evaluated, strict=True):
        assert (record["text"], record["predicted"]) == (other["text"], other["predicted"])
        assert record["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert "expected" not in record and "loss" not in record


def test_words_are_told_as_in_an_evaluation(tagger: Path, tmp_path: Path) -> None:
    evaluated = score(str(tagger), gap=False).records
    file = write(tmp_path / "rows.jsonl", [{"tokens": record["words"]} for record in evaluated])
    assert [r["predicted"] for r in predicted(tagger, file)] == [r["predicted"] for r in evaluated]
    texts = write(tmp_path / "texts.jsonl", [{"text": " ".join(record["words"])} for record in evaluated])
    assert [r["predicted"] for r in predicted(tagger, texts)] == [r["predicted"] for r in evaluated]


def test_language_models_answer_as_in_an_evaluation(answering: Path, tmp_path: Path) -> None:
    evaluated = score(str(answering), ["evaluation.exact_match=5"], gap=False).records[:5]
    questions = [record["prompt"].split("user\n")[1].split("<|im_end|>")[0] for record in evaluated]
    chats = [{"messages": [{"role": "user", "content": text}]} for text in questions]
    found = predicted(answering, write(tmp_path / "chats.jsonl", chats))
    assert [(r["prompt"], r["predicted"]) for r in found] == [(r["prompt"], r["predicted"]) for r in evaluated]
    plain = predicted(answering, write(tmp_path / "plain.jsonl", [{"prompt": text} for text in questions]))
    assert [record["predicted"] for record in plain] == [record["predicted"] for record in found]


def test_a_bad_row_loses_no_other(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a lovely film"}\n{"text": ""}\nnot json\n{"text": "dull", "label": "x"}\n')
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(classifier), str(file), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "row 2: 2 of 4 rows could not be used" in error and "blank" in error
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [("predicted" in record, "error" in record) for record in found] == [
        (True, False),
        (False, True),
        (False, True),
        (True, False),
    ]
    file.write_text('{"text": "a lovely film"}\n')
    assert main(["predict", str(classifier), str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == found[0]


def test_a_text_longer_than_the_model_reads_is_cut(classifier: Path, tmp_path: Path) -> None:
    """A BERT has a vector for each of 512 places."""
    file = write(tmp_path / "long.jsonl", [{"text": "a lovely film " * 300}, {"text": "bad"}])
    assert [len(record["predicted"]) > 0 for record in predicted(classifier, file, "data.max_length=2048")] == [
        True
    ] * 2


def test_the_rows_of_one_task_of_several(tmp_path: Path) -> None:
    """However the training rows of the tasks were mixed."""
    rows = [{"text": text, "label": label} for text, label in [("good", "yes"), ("bad", "no")] * 4]
    files = [write(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    mix = ",".join(f"{{path: {file}, task: {name}}}" for file, name in zip(files, "ab", strict=True))
    words = ("data=mix", f"data.mix=[{mix}]", "data.mixing=equal", "data.validation=0.3", "train.max_steps=1")
    run = trained_run(tmp_path / "run", "smoke_classify", *words)
    plan = predicting.plan(str(run), files[0], task="a")
    assert {record["predicted"] for record in predicting.predict(plan)} <= {"yes", "no"}


def test_bad_input_is_one_message(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        predicting.plan(str(classifier), str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="no format reads these columns: nothing\n"):
        predicting.plan(str(classifier), write(tmp_path / "rows.jsonl", [{"nothing": 1}]))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match="holds no rows"):
        predicting.plan(str(classifier), str(empty))


LAST = {"role": "user", "content": "hi"}
STAND_INS = [
    (Kind.text, False, {"messages": [LAST]}, "messages", [LAST, {"role": "assistant", "content": ANSWER}]),
    (Kind.text, False, {"conversations": [{"from": "human", "value": "hi"}]}, "conversations", None),
    (Kind.text, False, {"prompt": "hi"}, "response", ANSWER),
    (Kind.text, True, {"prompt": "hi"}, "completion", ANSWER),
    (Kind.text, True, {"text": "hi"}, "prompt", "hi"),
    (Kind.text, False, {"instruction": "hi"}, "output", ANSWER),
    (Kind.tags, False, {"text": "a b"}, "tags", ["x", "x"]),
    (Kind.single_label, False, {"text": "a"}, "label", "x"),
]


@pytest.mark.parametrize(("kind", "raw", "row", "column", "wanted"), STAND_INS)
def test_a_row_gets_what_its_format_needs(kind: Kind, raw: bool, row: dict, column: str, wanted: object) -> None:
    found = completed(row, kind, "x", raw=raw)
    assert found[column] == wanted if wanted is not None else len(found[column]) == len(row[column]) + 1
    assert completed(found, kind, "y", raw=raw) == found


TEXTS, ANSWERS = Task.sequence_classification, Task.causal_lm
ROLES = {"role": "user", "content": "hi"}
PASSED_OVER = [
    (TEXTS, "classification", {}, {"text": "a"}, "label", ["", None, "weird", 3]),
    (TEXTS, "classification", {"text": "{a}: {b}", "label": "mood"}, {"a": "a", "b": "b"}, "mood", [""]),
    (TEXTS, "auto", {}, {"sentence1": "a", "sentence2": "b"}, "labels", ["", None]),
    (Task.token_classification, "tagging", {}, {"tokens": ["a", "b"]}, "tags", [[], None, "", ["O"]]),
    (Task.seq2seq_lm, "seq2seq", {}, {"source": "a"}, "target", ["", " ", None]),
    (Task.seq2seq_lm, "seq2seq", {"source": "target", "target": "source"}, {"target": "a"}, "source", ["", "b"]),
    (ANSWERS, "alpaca", {}, {"instruction": "a"}, "output", ["", None, "b"]),
    (ANSWERS, "auto", {}, {"question": "a"}, "answer", ["", None, "b"]),
    (ANSWERS, "prompt_completion", {}, {"prompt": "a"}, "completion", ["", None, "b"]),
    (ANSWERS, "prompt_completion", {}, {"prompt": [ROLES]}, "completion", [[], None, ""]),
    (ANSWERS, "columns", {}, {"text": "a"}, "label", ["", None, "b"]),
]


@pytest.mark.parametrize(("task", "name", "columns", "row", "answer", "given"), PASSED_OVER)
def test_whatever_stands_for_an_answer_is_passed_over(
    task: Task, name: str, columns: dict[str, str], row: dict, answer: str, given: list
) -> None:
    kind = {TEXTS: Kind.single_label, Task.token_classification: Kind.tags}.get(task, Kind.text)
    label = "" if kind is Kind.text else "x"
    for each in given:
        first = row | {answer: each}
        read = choose(name, columns, first, kind, label, raw=name == "prompt_completion", known=formats_for(task))
        assert read(first) == read(row)


@pytest.mark.parametrize("content", ["", None, "hello"])
def test_the_last_answer_of_a_conversation_is_passed_over(content: str | None) -> None:
    row = {"chat": [ROLES, {"role": "assistant", "content": content}]}
    read = choose("messages", {"messages": "chat"}, row, Kind.text, "", raw=False, known=formats_for(ANSWERS))
    assert read(row) == read({"chat": [ROLES]})


def test_labels_of_several_tasks_are_told_apart_by_their_names() -> None:
    several = Labels({"a": ["x", "y"], "b": ["x", "z"]})
    assert labels_of(several.names, ["a", "b"]).by_task == several.by_task
    assert labels_of(["a: x", "y"], ["a", "b"]).by_task == {"": ["a: x", "y"]}
    assert labels_of(["x", "y"], ["a"]).of("anything") == ["x", "y"]
