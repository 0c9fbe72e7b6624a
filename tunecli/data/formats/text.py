"""`text`: plain text, every token trained (continued pretraining)."""

from __future__ import annotations

from tunecli.data.examples import Text
from tunecli.data.formats import fields
from tunecli.data.source import Row


def convert(row: Row) -> Text:
    return Text(fields.text(row, "text"))
