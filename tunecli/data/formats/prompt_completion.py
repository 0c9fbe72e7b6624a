"""`prompt_completion`: two texts, used as they are, or two lists of messages, used as one conversation."""

from __future__ import annotations

from tunecli.config.errors import UserError
from tunecli.data.examples import Messages, PromptCompletion
from tunecli.data.formats import fields
from tunecli.data.formats.messages import check_conversation
from tunecli.data.source import Row


def convert(row: Row) -> PromptCompletion | Messages:
    prompt, completion = fields.required(row, "prompt"), fields.required(row, "completion")
    if isinstance(prompt, list) != isinstance(completion, list):
        raise UserError(
            "prompt and completion are of two kinds, text and messages",
            where=row.where,
            fix="write both as text or both as lists of messages",
        )
    if isinstance(prompt, str) or isinstance(completion, str):
        return PromptCompletion(fields.text(row, "prompt"), fields.text(row, "completion"))
    asked, answered = fields.turns(row, "prompt"), fields.turns(row, "completion")
    check_conversation(row, [*asked[:1], *answered])
    return Messages([*asked, *answered], context=len(asked))
