"""`alpaca`: columns instruction, input (may be empty or missing) and output, as one question and one answer."""

from __future__ import annotations

from tunecli.data.examples import Messages
from tunecli.data.formats import fields
from tunecli.data.source import Row


def convert(row: Row) -> Messages:
    instruction = fields.text(row, "instruction")
    context = fields.text(row, "input") if row.values.get("input") is not None else ""
    question = f"{instruction}\n\n{context}" if context else instruction
    return Messages(
        [{"role": "user", "content": question}, {"role": "assistant", "content": fields.text(row, "output")}]
    )
