"""`messages`: a conversation in the roles and contents that chat templates read.

A column `tools` (a list, or a list as a JSON text) describes what the assistant may call. An assistant's message with
`train: false` (or `weight: 0`) is context.
"""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import Messages
from tunecli.data.formats import fields
from tunecli.data.formats.turns import read_conversation


def convert(values: dict[str, Any]) -> Messages:
    return read_conversation(fields.required(values, "messages"), "messages", values.get("tools"))
