"""`text`: plain text, every token trained (continued pretraining)."""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import Text
from tunecli.data.formats import fields


def convert(values: dict[str, Any]) -> Text:
    return Text(fields.answer(values, "text"))
