"""`prompt_completion`: two texts, used as they are, or two lists of messages, used as one conversation."""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import Messages, PromptCompletion, Unusable
from tunecli.data.formats import fields
from tunecli.data.formats.turns import read_conversation


def convert(values: dict[str, Any]) -> PromptCompletion | Messages:
    prompt, completion = fields.required(values, "prompt"), fields.required(values, "completion")
    if isinstance(prompt, list) != isinstance(completion, list):
        raise Unusable(
            "prompt and completion are of two kinds, text and messages",
            "write both as text or both as lists of messages",
        )
    if isinstance(prompt, list):
        return read_conversation(completion, "completion", values.get("tools"), context=prompt)
    return PromptCompletion(fields.text(values, "prompt"), fields.answer(values, "completion"))
