"""Reading one column of a row, with an error that shows the columns there are and how to map them."""

from __future__ import annotations

from typing import Any

from tunecli.config.errors import UserError
from tunecli.data.source import Row

ROLES = ("system", "user", "assistant", "tool")


def required(row: Row, column: str) -> Any:
    if column in row.values:
        return row.values[column]
    has = ", ".join(row.values) or "none"
    raise UserError(
        f"no column {column!r}; the row has: {has}",
        where=row.where,
        fix=f"name the column that holds it: data.columns.{column}=COLUMN, or choose another data.format",
    )


def text(row: Row, column: str) -> str:
    """The text of a column that must be there."""
    value = required(row, column)
    if isinstance(value, str):
        return value
    raise UserError(
        f"column {column!r} holds {value!r:.60}, not text",
        where=row.where,
        fix="write it as a string, remove the row, or map another column with data.columns",
    )


def turns(row: Row, column: str) -> list[dict[str, Any]]:
    """The messages of a column that must be there, each checked."""
    messages = required(row, column)
    if not isinstance(messages, list):
        raise _bad_turns(row, f"column {column!r} holds {messages!r:.60}, not a list of messages")
    if not messages:
        raise _bad_turns(row, f"column {column!r} is an empty list")
    for index, message in enumerate(messages, start=1):
        _check_turn(row, f"message {index} of {column!r}", message)
    return messages


def _check_turn(row: Row, name: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise _bad_turns(row, f"{name} is {message!r:.60}, not an object")
    missing = {"role", "content"} - message.keys()
    if message.get("tool_calls"):
        missing.discard("content")
    if missing:
        raise _bad_turns(row, f"{name} has no {' and no '.join(sorted(missing))} (it has: {', '.join(message)})")
    if message["role"] not in ROLES:
        raise _bad_turns(row, f"{name} has the role {message['role']!r}; known: {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise _bad_turns(row, f"{name} has the content {content!r:.60}, not text")


def _bad_turns(row: Row, what: str) -> UserError:
    return UserError(
        what,
        where=row.where,
        fix='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
    )
