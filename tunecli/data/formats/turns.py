"""From a column of messages to a conversation: what formats that hold turns share."""

from __future__ import annotations

import json
from typing import Any

from tunecli.data import conversation
from tunecli.data.examples import Messages, Unusable

ROLES = ("system", "user", "assistant", "tool")
SHAPE = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
CALLS_IN_TEXT = ("<tool_call", "<function", "[TOOL_CALLS]", "<|python_tag|>")
"""How sets that write tool calls into the content begin them."""


def read_conversation(turns: Any, column: str, tools: Any = None, *, context: Any = None) -> Messages:
    """The messages of a column, and before them those of `context`, whose answers are given, each checked and in the
    form that chat templates expect."""
    given = [] if context is None else read_turns(context, "prompt")
    messages = [*given, *read_turns(turns, column)]
    untrained = tuple(i for i, message in enumerate(messages) if not _is_trained(message, i))
    messages = [
        {key: value for key, value in message.items() if key not in ("train", "weight")} for message in messages
    ]
    found = Messages(messages, len(given), untrained, read_tools(tools))
    check_order(found)
    return found


def check_order(example: Messages) -> None:
    """Raise Unusable where the roles make no conversation that can be trained."""
    messages = example.messages
    roles = [message["role"] for message in messages]
    if "assistant" not in roles[example.context :]:
        raise Unusable(
            f"no assistant turn to train on (roles: {', '.join(roles)})", "add the answer, or remove the row"
        )
    if roles[0] == "assistant":
        raise Unusable(
            "the conversation begins with an assistant turn, which answers nothing",
            "begin with a user or system turn, or remove the first turn",
        )
    for i in range(1, len(messages)):
        _check_place(messages, i)
    answers = [
        message
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and i >= example.context and i not in example.untrained
    ]
    if answers and all(is_blank(message) for message in answers):
        raise Unusable("every answer to train on is blank", "fill one in, or remove the row")


def _check_place(messages: list[dict[str, Any]], i: int) -> None:
    role, before = messages[i]["role"], messages[i - 1]
    if role == "system":
        raise Unusable(
            f"message {i + 1} has the role system, which is for the first message only",
            "move it to the front, or give it another role",
        )
    if role == "tool" and before["role"] != "tool" and not _calls_a_tool(before):
        raise Unusable(
            f"message {i + 1} is the result of a tool that the message before it does not call",
            "add the tool_calls of the assistant, or remove the row",
        )


def _calls_a_tool(message: dict[str, Any]) -> bool:
    if message["role"] != "assistant":
        return False
    return bool(message.get("tool_calls")) or any(mark in message.get("content", "") for mark in CALLS_IN_TEXT)


def is_blank(message: dict[str, Any]) -> bool:
    """Whether a message says and does nothing."""
    thinks = conversation.reasoning(message)
    return not ((message.get("content") or "").strip() or message.get("tool_calls") or thinks)


def read_turns(turns: Any, column: str) -> list[dict[str, Any]]:
    """Messages, each checked, and in the form that chat templates expect."""
    if not isinstance(turns, list):
        raise Unusable(f"column {column!r} holds {turns!r:.60}, not a list of messages", SHAPE)
    if not turns:
        raise Unusable(f"column {column!r} is an empty list", SHAPE)
    return [_turn(turn, f"message {i} of {column!r}") for i, turn in enumerate(turns, start=1)]


def _turn(turn: Any, name: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise Unusable(f"{name} is {turn!r:.60}, not an object", SHAPE)
    message = _without_none(turn)
    role, calls = message.get("role"), message.get("tool_calls")
    missing = {"role", "content"} - turn.keys()
    if calls:
        missing.discard("content")
    if missing:
        raise Unusable(f"{name} has no {' and no '.join(sorted(missing))} (it has: {', '.join(turn)})", SHAPE)
    if role not in ROLES:
        raise Unusable(f"{name} has the role {turn['role']!r:.60}; known: {', '.join(ROLES)}", SHAPE)
    if "content" in message or not calls:
        message["content"] = _content(message.get("content"), name)
    if calls:
        message["tool_calls"] = _calls(calls, name)
    for key in conversation.REASONING_KEYS:
        if not isinstance(message.get(key, ""), str):
            raise Unusable(f"{name} has the {key} {message[key]!r:.60}, not text", "write it as a string")
    return message


def _without_none(value: Any) -> Any:
    """Without the keys that Arrow fills in where other rows have them."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _content(content: Any, name: str) -> str:
    if isinstance(content, list):
        return "".join(_part(part, name) for part in content)
    if isinstance(content, str):
        return content
    raise Unusable(f"{name} has the content {content!r:.60}, not text", SHAPE)


def _part(part: Any, name: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else part
    raise Unusable(
        f"{name} has a part of type {kind!r:.60} in its content; only text can be trained", "remove the row"
    )


def _calls(calls: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise Unusable(f"{name} has the tool_calls {calls!r:.60}, not a list", "write a list of calls")
    return [_call(call, f"tool call {i} of {name}") for i, call in enumerate(calls, start=1)]


def _call(call: Any, name: str) -> dict[str, Any]:
    """A call as transformers documents it: `{"type": "function", "function": {"name", "arguments": an object}}`."""
    if isinstance(call, dict) and "function" not in call:
        call = {"function": call}
    function = call.get("function") if isinstance(call, dict) else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unusable(f"{name} is {call!r:.60}, not a call", 'write {"function": {"name": "f", "arguments": {...}}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = from_json(arguments, f"the arguments of {name}")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def from_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unusable(f"{name} are not JSON: {error}", "write them as JSON, or remove the row") from None


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tools from a list, or from a list as a JSON text. An empty one is none."""
    tools = from_json(tools, "the tools") if isinstance(tools, str) and tools.strip() else _without_none(tools)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unusable(f"column 'tools' holds {tools!r:.60}, not a list of objects", "write a list of JSON schemas")
    return tools


def _is_trained(message: dict[str, Any], i: int) -> bool:
    """What `train: false` or `weight: 0` at a message says; true without either."""
    for key in ("train", "weight"):
        mark = message.get(key)
        if mark is None:
            continue
        if mark not in (0, 1):
            raise Unusable(
                f"message {i + 1} has {key}: {mark!r:.60}", "write train: true or false, or weight: 0 or 1"
            )
        if mark and message["role"] != "assistant":
            raise Unusable(
                f"message {i + 1} has {key}: {json.dumps(mark)}, but the role {message['role']}",
                "only the assistant's messages can be marked; stage.train_on_prompt=true trains everything",
            )
        if not mark and message["role"] == "assistant":
            return False
    return True
