"""The formats: each a module with one function from a row to a canonical example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
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
        fix = f"{did_you_mean(format, FORMATS)}the formats are: {', '.join(FORMATS)}"
        raise UserError(f"no format {format!r}", where="data.format", fix=fix)
    return FORMATS[format](_renamed(row, columns) if columns else row)


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    for expected, name in columns.items():
        if name not in row.values:
            raise UserError(
                f"no column {name!r}, which data.columns.{expected} names; the row has: {', '.join(row.values)}",
                where=row.where,
                fix=f"{did_you_mean(name, row.values)}set data.columns.{expected} to a column of the row",
            )
    return replace(row, values={**row.values, **{new: row.values[old] for new, old in columns.items()}})
