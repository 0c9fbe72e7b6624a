"""`sharegpt`: a column `conversations` of {"from": "human", "value": "..."}; columns `system` and `tools` may hold a
system message and descriptions of tools."""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import Messages, Unusable
from tunecli.data.formats import fields
from tunecli.data.formats.turns import from_json, read_conversation

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    **dict.fromkeys(("gpt", "assistant", "bing", "chatgpt", "bard"), "assistant"),
    "function_call": "assistant",
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
}
SHAPE = 'write [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]'


def convert(values: dict[str, Any]) -> Messages:
    turns = fields.required(values, "conversations")
    if not isinstance(turns, list):
        raise Unusable(f"column 'conversations' holds {turns!r:.60}, not a list of turns", SHAPE)
    messages = [_message(turn, i) for i, turn in enumerate(turns, start=1)]
    system = fields.optional_text(values, "system")
    if system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return read_conversation(messages, "conversations", values.get("tools"))


def _message(turn: Any, number: int) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise Unusable(f"turn {number} is {turn!r:.60}, not an object", SHAPE)
    missing = [key for key in ("from", "value") if turn.get(key) is None]
    if missing:
        raise Unusable(f"turn {number} has no {' and no '.join(missing)} (it has: {', '.join(turn)})", SHAPE)
    if turn["from"] not in ROLES:
        raise Unusable(f"turn {number} is from {turn['from']!r:.60}; known: {', '.join(ROLES)}", SHAPE)
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    message = {**rest, "role": ROLES[turn["from"]]}
    if turn["from"] != "function_call":
        return {**message, "content": turn["value"]}
    calls = turn["value"]
    if isinstance(calls, str):
        calls = from_json(calls, f"the function calls in turn {number}")
    return {**message, "tool_calls": calls if isinstance(calls, list) else [calls]}
