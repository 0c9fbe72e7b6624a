"""The formats: each a module with one function from a row to a canonical example."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from tunecli.config.errors import UserError
from tunecli.data.examples import Example
from tunecli.data.formats import alpaca, messages, prompt_completion, text
from tunecli.data.source import Row

FORMATS: dict[str, Callable[[Row], Example]] = {
    "messages": messages.convert,
    "alpaca": alpaca.convert,
    "prompt_completion": prompt_completion.convert,
    "text": text.convert,
}


def to_example(row: Row, format: str, columns: dict[str, str]) -> Example:
    """The example in `row`. `columns`: names that the format expects -> names that the row has."""
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"use one of: {', '.join(FORMATS)}"
        raise UserError(f"no format {format!r}", where="data.format", fix=fix)
    return FORMATS[format](_renamed(row, columns) if columns else row)


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    for expected, name in columns.items():
        if name not in row.values:
            near = difflib.get_close_matches(name, row.values, n=1)
            hint = f"did you mean data.columns.{expected}={near[0]}?" if near else "correct data.columns"
            raise UserError(
                f"no column {name!r}, which data.columns.{expected} names; the row has: {', '.join(row.values)}",
                where=row.where,
                fix=hint,
            )
    return replace(row, values={**row.values, **{new: row.values[old] for new, old in columns.items()}})
