"""`messages`: a conversation in the roles and contents that chat templates read."""

from __future__ import annotations

from typing import Any

from tunecli.config.errors import UserError
from tunecli.data.examples import Messages
from tunecli.data.formats import fields
from tunecli.data.source import Row


def convert(row: Row) -> Messages:
    messages = fields.turns(row, "messages")
    check_conversation(row, messages)
    return Messages(messages)


def check_conversation(row: Row, messages: list[dict[str, Any]]) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise UserError(
            f"no assistant turn to train on (roles: {', '.join(roles)})",
            where=row.where,
            fix="add the answer, or remove the row",
        )
    if roles[0] == "assistant":
        raise UserError(
            "the conversation begins with an assistant turn, which answers nothing",
            where=row.where,
            fix="begin with a user or system turn, or remove the first turn",
        )
