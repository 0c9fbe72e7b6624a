"""From a row's values to an example, and what a user reads when a row is wrong."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from tunecli.config.errors import UserError
from tunecli.data.examples import Messages, PromptCompletion, Text, Unusable
from tunecli.data.formats import FORMATS, Format, choose_format
from tunecli.data.source import BUILTIN

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
PAIR = Messages([QUESTION, ANSWER])
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def human(value: str) -> dict[str, str]:
    return {"from": "human", "value": value}


def gpt(value: str, name: str = "gpt") -> dict[str, str]:
    return {"from": name, "value": value}


@pytest.mark.parametrize(
    ("format", "values", "expected"),
    [
        ("messages", {"messages": [QUESTION, ANSWER]}, PAIR),
        ("messages", {"messages": [SYSTEM, ANSWER]}, Messages([SYSTEM, ANSWER])),
        (
            "messages",
            {"messages": [QUESTION, QUESTION, ANSWER, QUESTION]},
            Messages([QUESTION, QUESTION, ANSWER, QUESTION]),
        ),
        ("sharegpt", {"conversations": [human("q"), gpt("a")]}, PAIR),
        (
            "sharegpt",
            {"conversations": [gpt("s", "system"), gpt("q", "user"), gpt("a", "bard")]},
            Messages([SYSTEM, QUESTION, ANSWER]),
        ),
        ("sharegpt", {"conversations": [human("q"), gpt("a")], "system": "s"}, Messages([SYSTEM, QUESTION, ANSWER])),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}, PAIR),
        ("alpaca", {"instruction": "q", "input": None, "output": "a"}, PAIR),
        ("alpaca", {"instruction": "q", "output": "a"}, PAIR),
        (
            "alpaca",
            {"instruction": "q", "input": "i", "output": "a"},
            Messages([{"role": "user", "content": "q\n\ni"}, ANSWER]),
        ),
        (
            "alpaca",
            {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]},
            Messages([SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER]),
        ),
        ("alpaca", {"instruction": "q", "output": "a", "system": None, "history": []}, PAIR),
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
    assert Format(format)(values) == expected
    assert format in FORMATS


def test_smoke_rows_are_conversations_of_all_kinds():
    lines = BUILTIN["builtin:smoke"].read_text(encoding="utf-8").splitlines()
    found = [Format("messages")(json.loads(line)) for line in lines]
    assert any(len(e.messages) > 4 for e in found)
    assert any(e.messages[0]["role"] == "system" for e in found)


def call_message(arguments, **more) -> dict:
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}],
        **more,
    }


RESULT = {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    "call",
    [
        call_message({"x": 1}),
        call_message('{"x": 1}', content=None, name=None),
        call_message({"x": 1, "filled_by_arrow": None}),
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]},
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [{**TOOLS[0], "filled_by_arrow": None}]])
def test_tool_calls_take_the_documented_form(call, tools):
    found = Format("messages")({"messages": [QUESTION, call, RESULT, ANSWER], "tools": tools})
    assert found == Messages([QUESTION, {"role": "assistant", "tool_calls": [CALL]}, RESULT, ANSWER], tools=TOOLS)


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_none(tools):
    assert Format("messages")({"messages": [QUESTION, ANSWER], "tools": tools}) == PAIR


def test_sharegpt_calls_tools():
    calls = json.dumps({"name": "f", "arguments": {"x": 1}})
    turns = [human("q"), gpt(calls, "function_call"), gpt("3", "observation"), gpt("a")]
    found = Format("sharegpt")({"conversations": turns, "tools": json.dumps(TOOLS)})
    assert found == Messages([QUESTION, {"role": "assistant", "tool_calls": [CALL]}, RESULT, ANSWER], tools=TOOLS)


def test_result_of_a_call_that_is_written_as_text():
    call = gpt('<tool_call>{"name": "f"}</tool_call>')
    assert len(Format("sharegpt")({"conversations": [human("q"), call, gpt("3", "tool"), gpt("a")]}).messages) == 4


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "q", "image": None}, {"type": "text", "text": "?"}]
    found = Format("messages")({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert found.messages[0] == {"role": "user", "content": "q?"}


@pytest.mark.parametrize(("key", "off", "on"), [("train", False, True), ("weight", 0, 1), ("weight", 0.0, 1.0)])
def test_marks_at_messages(key, off, on):
    messages = [{**QUESTION, key: off}, {**ANSWER, key: off}, {**QUESTION, key: None}, {**ANSWER, key: on}]
    assert Format("messages")({"messages": messages}) == Messages(
        [QUESTION, ANSWER, QUESTION, ANSWER], untrained=(1,)
    )


def bad_turn(message) -> dict:
    return {"messages": [QUESTION, message]}


@pytest.mark.parametrize(
    ("format", "values", "message"),
    [
        ("messages", {"conversation": []}, "no column 'messages'; the row has: conversation"),
        ("messages", {"messages": "hi"}, "holds 'hi', not a list"),
        ("messages", {"messages": []}, "empty list"),
        ("messages", bad_turn("hi"), "message 2 .* is 'hi', not an object"),
        ("messages", bad_turn({"from": "gpt", "value": "hi"}), "message 2 .*no content and no role .*from, value"),
        ("messages", bad_turn({"role": "gpt", "content": "hi"}), "message 2 .*the role 'gpt'; known: system"),
        ("messages", bad_turn({"role": None, "content": "hi"}), "message 2 .*the role None"),
        ("messages", bad_turn({"role": ["x"], "content": "hi"}), "message 2 .*the role"),
        ("messages", bad_turn({"role": "assistant", "content": 3}), "message 2 .*the content 3, not text"),
        ("messages", bad_turn({"role": "assistant", "content": None}), "message 2 .*the content None, not text"),
        (
            "messages",
            bad_turn({"role": "assistant", "content": [{"type": "image"}]}),
            "message 2 .*part of type 'image'",
        ),
        ("messages", bad_turn({**ANSWER, "reasoning_content": 3}), "message 2 .*reasoning_content 3, not text"),
        ("messages", bad_turn(call_message("{x")), "arguments of tool call 1 of message 2 .*not JSON"),
        ("messages", bad_turn({"role": "assistant", "tool_calls": ["f"]}), "tool call 1 of message 2 .*'f'"),
        ("messages", {"messages": [QUESTION, ANSWER], "tools": "{x"}, "tools are not JSON"),
        ("messages", {"messages": [QUESTION, ANSWER], "tools": ["f"]}, r"'tools' holds \['f'\]"),
        (
            "messages",
            {"messages": [{**QUESTION, "train": True}, ANSWER]},
            "message 1 has train: true, but the role user",
        ),
        ("messages", {"messages": [QUESTION, {**ANSWER, "weight": 2}]}, "message 2 has weight: 2"),
        ("messages", {"messages": [QUESTION]}, "no assistant turn"),
        ("messages", {"messages": [ANSWER, QUESTION]}, "begins with an assistant turn"),
        ("messages", {"messages": [QUESTION, SYSTEM, ANSWER]}, "message 2 has the role system"),
        ("messages", {"messages": [QUESTION, RESULT, ANSWER]}, "message 2 is the result of a tool"),
        ("messages", {"messages": [QUESTION, ANSWER, RESULT]}, "message 3 is the result of a tool"),
        ("messages", {"messages": [QUESTION, {"role": "assistant", "content": " \n"}]}, "every answer .*blank"),
        ("sharegpt", {"conversations": [human("q"), {"role": "gpt"}]}, "turn 2 has no from and no value"),
        ("sharegpt", {"conversations": [human("q"), gpt("a", "llama")]}, "turn 2 is from 'llama'; known: system"),
        (
            "sharegpt",
            {"conversations": [human("q"), gpt("{x", "function_call")]},
            "function calls in turn 2 are not JSON",
        ),
        ("alpaca", {"instruction": "q", "response": "a"}, "no column 'output'; the row has: instruction, response"),
        ("alpaca", {"instruction": "q", "output": 4}, "column 'output' holds 4, not text"),
        ("alpaca", {"instruction": "q", "output": " "}, "column 'output' is blank"),
        ("alpaca", {"instruction": "q", "input": [1], "output": "a"}, r"column 'input' holds \[1\]"),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]}, r"column 'history' holds \['q'\]"),
        ("prompt_completion", {"prompt": "q"}, "no column 'completion'"),
        ("prompt_completion", {"prompt": "q", "completion": [ANSWER]}, "two kinds"),
        ("prompt_completion", {"prompt": [QUESTION], "completion": [QUESTION]}, "no assistant turn"),
        ("prompt_completion", {"prompt": 1, "completion": 2}, "column 'prompt' holds 1"),
        ("prompt_completion", {"prompt": "q", "completion": ""}, "column 'completion' is blank"),
        ("text", {"text": None}, "column 'text' holds None"),
        ("text", {"text": "\n"}, "column 'text' is blank"),
    ],
)
def test_bad_rows_say_what_is_wrong_and_how_to_mend_it(format, values, message):
    with pytest.raises(Unusable, match=f"^(.*){message}") as caught:
        Format(format)(values)
    assert caught.value.fix


def test_unusable_travels_between_processes():
    error = pickle.loads(pickle.dumps(Unusable("what", "fix")))
    assert (error.what, error.fix, str(error)) == ("what", "fix", "what")


# ---- columns


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"instruction": "q", "output": "a"}, PAIR),
        ({"instruction": "q", "output": "{a}"}, PAIR),
        ({"instruction": "{{q}} {q}{n}", "output": "odd {name}"}, "{q} q7"),
        ({"instruction": "{all.q.0}", "output": "all.a"}, PAIR),
    ],
)
def test_columns_are_renamed_or_put_into_a_text(columns, expected):
    values = {"q": "q", "a": "a", "n": 7, "odd {name}": "a", "all": {"q": ["q", "no"], "a": "a"}}
    found = choose_format("alpaca", columns, values)(values)
    assert found == (expected if expected is PAIR else Messages([{"role": "user", "content": expected}, ANSWER]))


def test_wrong_column_names_and_formats_suggest_the_near_one():
    for missing in ("question.0", "all.quesion", "all.q.1", "all.q.q"):
        with pytest.raises(Unusable, match=f"no column '{missing}'"):
            Format("alpaca", {"instruction": missing})({"question": "q", "all": {"q": ["q"]}})
    for source in ("quesion", "Q: {quesion}"):
        with pytest.raises(
            UserError, match="^data.columns.instruction: no column 'quesion'.*\n.*did you mean question"
        ):
            choose_format("alpaca", {"instruction": source}, {"question": "q"})
        with pytest.raises(Unusable, match="no column 'quesion', which data.columns.instruction names"):
            Format("alpaca", {"instruction": source})({"question": "q"})
    with pytest.raises(UserError, match="no format 'mesages'.*\n.*did you mean messages"):
        choose_format("mesages", {}, {})
    with pytest.raises(Unusable, match="column 'q', which data.columns.text puts into a text, holds None"):
        Format("text", {"text": "Q: {q}"})({"q": None})


# ---- auto


@pytest.mark.parametrize(
    ("values", "expected", "name"),
    [
        ({"messages": [QUESTION, ANSWER], "prompt": "q", "prompt_id": "x"}, PAIR, "messages"),
        ({"conversations": [human("q"), gpt("a")], "id": 3}, PAIR, "sharegpt"),
        ({"conversations": [QUESTION, ANSWER]}, PAIR, "messages"),
        ({"instruction": "q", "input": "", "output": "a", "text": "q a"}, PAIR, "alpaca"),
        ({"instruction": "q", "context": "", "response": "a", "category": "x"}, PAIR, "alpaca"),
        ({"instruction": "q", "response": "a"}, PAIR, "alpaca"),
        ({"prompt": "q", "response": "a"}, PAIR, "alpaca"),
        ({"question": "q", "answer": "a"}, PAIR, "alpaca"),
        ({"query": "q", "response": "a"}, PAIR, "alpaca"),
        ({"prompt": "q", "completion": "a"}, PromptCompletion("q", "a"), "prompt_completion"),
        ({"text": "t", "url": "u"}, Text("t"), "text"),
        ({"content": "t"}, Text("t"), "text"),
    ],
)
def test_format_is_told_from_the_columns(values, expected, name):
    format = choose_format("auto", {}, values)
    assert (format.name, format.detected, format(values)) == (name, True, expected)
    assert pickle.loads(pickle.dumps(format)) == format


def test_what_the_user_maps_decides():
    values = {"article": "q", "highlights": "a", "messages": []}
    format = choose_format("auto", {"instruction": "{article}", "output": "highlights"}, values)
    assert (format.name, format(values)) == ("alpaca", PAIR)
    assert str(format) == "alpaca, told from the columns (instruction: {article}, output: highlights)"
    values = {"chat": [QUESTION, ANSWER]}
    format = choose_format("auto", {"conversations": "chat"}, values)
    assert (format.name, format(values)) == ("messages", PAIR)


def test_unclear_columns_are_listed_with_the_fix():
    with pytest.raises(
        UserError, match="data.format: the columns fit several formats: prompt, completion, messages"
    ) as e:
        choose_format("auto", {}, {"prompt": "q", "completion": "a", "messages": []})
    assert "data.format=messages, or data.format=prompt_completion" in str(e.value)
    with pytest.raises(UserError) as e:
        choose_format("auto", {}, {"instruction": "q", "output": "a", "response": "b"})
    assert "data.format=alpaca, or data.format=alpaca data.columns.output=response" in str(e.value)
    with pytest.raises(
        UserError, match="data.format: no format reads these columns: chosen, rejected\n.*data.columns.instruction="
    ):
        choose_format("auto", {}, {"chosen": "a", "rejected": "b"})
    with pytest.raises(UserError, match="fix: stage=tag learns rows of tagging; or say which columns"):
        choose_format("auto", {}, {"tokens": ["a"], "tags": ["O"]})


# ---- custom


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module `own_format_N` in the current directory; its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_format_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(
        "from tunecli.data.examples import Messages, Text\n"
        "def as_example(row): return Text(row['t'])\n"
        "def as_columns(row): return {'instruction': row['t'], 'output': 'a'}\n"
        "def as_wrong_columns(row): return {'x': 1}\n"
        "def as_nothing(row): return None\n"
        "def as_no_answer(row): return Messages([{'role': 'user', 'content': 'q'}])\n"
        "def as_bad_messages(row): return Messages([{'content': 'q'}])\n"
        "def as_bad_text(row): return Text(3)\n"
        "def failing(row):\n"
        "    return row['absent']\n"
        "number = 3\n"
    )
    yield f"custom:{name}"
    sys.modules.pop(name, None)


def test_custom_function(own_module):
    format = choose_format(f"{own_module}:as_example", {}, {"t": "q"})
    assert format({"t": "q"}) == Text("q")
    assert str(Path.cwd()) in format.note and not format.detected
    again = pickle.loads(pickle.dumps(choose_format(f"{own_module}:as_columns", {"t": "u"}, {"u": "q"})))
    assert again({"u": "q"}) == PAIR


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("as_wrong_columns", "returns a dict with the keys x, which no format reads"),
        ("as_nothing", "returns None"),
        ("as_no_answer", "no assistant turn"),
        ("as_bad_messages", "message 1 .*has no role"),
        ("as_bad_text", r"returns Text\(text=3\)"),
        ("failing", "raises KeyError: 'absent' at .*own_format_.*py:10$"),
    ],
)
def test_custom_function_that_fails_on_a_row(own_module, function, message):
    with pytest.raises(Unusable, match=message):
        choose_format(f"{own_module}:{function}", {}, {"t": "q"})({"t": "q"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("custom:nowhere.module:f", "nowhere.module cannot be imported: ModuleNotFoundError"),
        ("custom:nowhere", "names no function"),
        ("custom:builtins:dict", "builtins is no file"),
        ("OWN:as_exampel", "has no 'as_exampel'\n.*did you mean as_example"),
        ("OWN:number", "is no function"),
    ],
)
def test_custom_function_that_does_not_exist(own_module, name, message):
    with pytest.raises(UserError, match=f"^data.format: .*{message}"):
        choose_format(name.replace("OWN", own_module), {}, {"t": "q"})


def test_names_in_capitals_are_found():
    found = choose_format("auto", {}, {"Question ": "q", "Answer": "a", "Comment": "c"})
    assert found.columns == {"instruction": "Question ", "output": "Answer"}
    assert found({"Question ": "q", "Answer": "a", "Comment": "c"}) == Messages([QUESTION, ANSWER])
    assert choose_format("auto", {}, {"TEXT": "t"}).columns == {"text": "TEXT"}


def test_line_breaks_of_the_command_line_are_line_breaks():
    format = choose_format("alpaca", {"instruction": "Say:\\n{q}", "output": "a"}, {"q": "q", "a": "a"})
    assert format({"q": "q", "a": "a"}).messages[0]["content"] == "Say:\nq"
