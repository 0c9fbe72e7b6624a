"""`seq2seq`: a text that is read, and the text that is to be written."""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import PromptCompletion, Unusable
from tunecli.data.formats import fields


def convert(values: dict[str, Any]) -> PromptCompletion:
    source, target = fields.text(values, "source"), fields.answer(values, "target")
    if not source.strip():
        raise Unusable("column 'source' is blank", "fill it in, or remove the row")
    return PromptCompletion(source, target)
