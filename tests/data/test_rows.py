"""Files to rows to examples, and what a user reads when a row is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from tunecli.config.data import DataConfig
from tunecli.config.errors import UserError
from tunecli.data.examples import Messages, PromptCompletion, Text
from tunecli.data.formats import FORMATS, to_example
from tunecli.data.source import BUILTIN, Row, _hub_error, fingerprint, read_rows


@pytest.fixture(autouse=True)
def inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config(path: str, **options) -> DataConfig:
    return DataConfig(path=path, format="text", **options)


def rows(path: str, content: bytes | None = None, **options) -> list[Row]:
    if content is not None:
        Path(path).write_bytes(content)
    return list(read_rows(config(path, **options), path))


def row(**values) -> Row:
    return Row("train.jsonl", 17, values)


def test_json_lines_keep_their_line_numbers_and_odd_line_breaks():
    content = '\ufeff{"text": "a\u2028b\u0085c"}\n\n{"text": "好 😀"}\r\n{"text": "\\ud83d\\ude00"}'
    assert rows("a.jsonl", content.encode()) == [
        Row("a.jsonl", 1, {"text": "a\u2028b\u0085c"}),
        Row("a.jsonl", 3, {"text": "好 😀"}),
        Row("a.jsonl", 4, {"text": "😀"}),
    ]


def test_json_list():
    assert rows("a.json", b'[{"text": "a"},\n {"text": "b"}]') == [
        Row("a.json", 1, {"text": "a"}),
        Row("a.json", 2, {"text": "b"}),
    ]


def test_max_samples_reads_no_further():
    assert len(rows("a.jsonl", b'{"text": "a"}\n{"text": "b"}\nnot json\n', max_samples=2)) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "a.jsonl row 2: not JSON: .*column 10"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl row 2: is a list, not an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "a.jsonl row 2: not UTF-8 .*0xe9"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}\n', "a.jsonl row 2: .*surrogate"),
        ("a.json", b'[{"text": "a"}, 3]', "a.json row 2: is a number, not an object"),
        ("a.json", b'{"text": "a"}', "a.json: holds an object, not a list"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', "a.json: not JSON.*line 2(.|\n)*name the file .jsonl"),
        ("a.csv", b"text\na\n", "a.csv: cannot read a .csv(.|\n)*jsonl"),
    ],
)
def test_unreadable_content_is_named(name, content, message):
    with pytest.raises(UserError, match=message):
        rows(name, content)


def test_missing_file_names_near_ones():
    Path("train.jsonl").touch()
    with pytest.raises(UserError, match="trian.jsonl: no such file\n.*did you mean train.jsonl"):
        rows("trian.jsonl")
    with pytest.raises(UserError, match="no such file\n.*nowhere does not exist"):
        rows("nowhere/train.jsonl")
    with pytest.raises(UserError, match="./train: no such file or folder\n.*did you mean train.jsonl"):
        rows("./train")
    with pytest.raises(UserError, match="builtin:smoke"):
        rows("builtin:smok")


def test_fingerprint_is_of_the_content():
    Path("a.jsonl").write_text("{}")
    Path("b.jsonl").write_text("{}")
    same = fingerprint(config("a.jsonl"), "a.jsonl")
    assert same == fingerprint(config("b.jsonl"), "b.jsonl")
    Path("b.jsonl").write_text("{ }")
    assert same != fingerprint(config("b.jsonl"), "b.jsonl")


def test_smoke_rows_are_conversations_of_all_kinds():
    found = [to_example(r, "messages", {}) for r in rows("builtin:smoke")]
    assert 60 <= len(found) <= 70
    assert any(len(e.messages) > 4 for e in found)
    assert any(e.messages[0]["role"] == "system" for e in found)
    text = BUILTIN["builtin:smoke"].read_text(encoding="utf-8")
    assert "北京" in text and "😀" in text


def test_hub_set_is_read_with_split_and_columns(monkeypatch):
    asked = []

    def load_dataset(path, name, split, revision):
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = config("org/set", subset="en", split="train", revision="abc", validation="split:dev")
    assert list(read_rows(data, "org/set")) == [Row("org/set", 1, {"text": "a"}), Row("org/set", 2, {"text": "b"})]
    assert len(list(read_rows(data, "split:dev"))) == 2
    assert asked == [("org/set", "en", "train", "abc"), ("org/set", "en", "dev", "abc")]
    assert fingerprint(data, "org/set").startswith("hub-")


def test_validation_split_of_a_local_file_is_refused():
    Path("a.jsonl").touch()
    with pytest.raises(UserError, match="data.validation: .*a.jsonl(.|\n)*data.validation=FILE"):
        list(read_rows(config("a.jsonl"), "split:dev"))


def test_hub_errors_say_what_to_do():
    offline = _hub_error("org/set", ConnectionError("Couldn't reach 'org/set' on the Hub (LocalEntryNotFoundError)"))
    assert "cannot be reached" in str(offline) and "HF_HUB_OFFLINE" in str(offline)
    missing = _hub_error("org/set", datasets.exceptions.DatasetNotFoundError("Dataset 'org/set' doesn't exist"))
    assert "not on the Hub" in str(missing)
    assert "data.split" in str(_hub_error("org/set", ValueError('Unknown split "dev".')))


QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("format", "values", "expected"),
    [
        ("messages", {"messages": [QUESTION, ANSWER]}, Messages([QUESTION, ANSWER])),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}, Messages([QUESTION, ANSWER])),
        ("alpaca", {"instruction": "q", "input": None, "output": "a"}, Messages([QUESTION, ANSWER])),
        ("alpaca", {"instruction": "q", "output": "a"}, Messages([QUESTION, ANSWER])),
        (
            "alpaca",
            {"instruction": "q", "input": "i", "output": "a"},
            Messages([{"role": "user", "content": "q\n\ni"}, ANSWER]),
        ),
        ("prompt_completion", {"prompt": "q", "completion": "a"}, PromptCompletion("q", "a")),
        (
            "prompt_completion",
            {"prompt": [QUESTION], "completion": [ANSWER]},
            Messages([QUESTION, ANSWER], context=1),
        ),
        ("text", {"text": "好"}, Text("好")),
    ],
)
def test_formats(format, values, expected):
    assert to_example(row(**values), format, {}) == expected
    assert format in FORMATS


def test_columns_are_renamed():
    example = to_example(row(q="q", a="a"), "alpaca", {"instruction": "q", "output": "a"})
    assert example == Messages([QUESTION, ANSWER])


def test_tool_calls_pass_through():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    messages = [QUESTION, call, {"role": "tool", "content": "3"}, ANSWER]
    assert to_example(row(messages=messages), "messages", {}) == Messages(messages)


def bad_turn(message) -> dict:
    return {"messages": [QUESTION, message]}


@pytest.mark.parametrize(
    ("format", "values", "message"),
    [
        (
            "messages",
            {"conversation": []},
            "no column 'messages'; the row has: conversation\n.*data.columns.messages=",
        ),
        ("messages", {"messages": "hi"}, "holds 'hi', not a list"),
        ("messages", {"messages": []}, "empty list"),
        ("messages", bad_turn("hi"), "message 2 .* is 'hi', not an object"),
        ("messages", bad_turn({"from": "gpt", "value": "hi"}), "message 2 .*no content and no role .*from, value"),
        ("messages", bad_turn({"role": "gpt", "content": "hi"}), "message 2 .*the role 'gpt'; known: system"),
        ("messages", bad_turn({"role": ["x"], "content": "hi"}), "message 2 .*the role"),
        ("messages", bad_turn({"role": "assistant", "content": 3}), "message 2 .*the content 3, not text"),
        ("messages", bad_turn({"role": "assistant", "content": None}), "message 2 .*the content None, not text"),
        ("messages", {"messages": [QUESTION]}, "no assistant turn"),
        ("messages", {"messages": [ANSWER, QUESTION]}, "begins with an assistant turn"),
        ("alpaca", {"instruction": "q", "response": "a"}, "no column 'output'; the row has: instruction, response"),
        ("alpaca", {"instruction": "q", "output": 4}, "column 'output' holds 4, not text"),
        ("alpaca", {"instruction": "q", "input": [1], "output": "a"}, r"column 'input' holds \[1\]"),
        ("prompt_completion", {"prompt": "q"}, "no column 'completion'"),
        ("prompt_completion", {"prompt": "q", "completion": [ANSWER]}, "two kinds"),
        ("prompt_completion", {"prompt": [QUESTION], "completion": [QUESTION]}, "no assistant turn"),
        ("prompt_completion", {"prompt": 1, "completion": 2}, "column 'prompt' holds 1"),
        ("text", {"text": None}, "column 'text' holds None"),
    ],
)
def test_bad_rows_name_file_row_and_fix(format, values, message):
    with pytest.raises(UserError, match=f"^train.jsonl row 17: (.*){message}") as caught:
        to_example(row(**values), format, {})
    assert "\n  fix: " in str(caught.value)


def test_wrong_column_names_and_formats_suggest_the_near_one():
    with pytest.raises(UserError, match="row 17: no column 'quesion'.*\n.*did you mean question"):
        to_example(row(question="q"), "alpaca", {"instruction": "quesion"})
    with pytest.raises(UserError, match="no format 'mesages'.*\n.*did you mean messages"):
        to_example(row(), "mesages", {})


def test_smoke_file_is_plain_json_lines():
    lines = BUILTIN["builtin:smoke"].read_text(encoding="utf-8").splitlines()
    assert all(list(json.loads(line)) == ["messages"] for line in lines)
