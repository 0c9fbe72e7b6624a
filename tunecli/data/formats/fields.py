"""Reading one column of a row, with an error that shows the columns there are and how to map them."""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import Unusable


def required(values: dict[str, Any], column: str) -> Any:
    if column in values:
        return values[column]
    raise Unusable(
        f"no column {column!r}; the row has: {', '.join(values) or 'none'}",
        f"name the column that holds it: data.columns.{column}=COLUMN, or choose another data.format",
    )


def text(values: dict[str, Any], column: str) -> str:
    """The text of a column that must be there."""
    value = required(values, column)
    if isinstance(value, str):
        return value
    raise Unusable(
        f"column {column!r} holds {value!r:.60}, not text",
        "write it as a string, remove the row, or map another column with data.columns",
    )


def optional_text(values: dict[str, Any], column: str) -> str:
    """The text of a column that may be missing or empty, else ""."""
    return text(values, column) if values.get(column) is not None else ""


def answer(values: dict[str, Any], column: str) -> str:
    """The text of a column that must be there and say something."""
    found = text(values, column)
    if not found.strip():
        raise Unusable(f"column {column!r} is blank, so there is nothing to learn", "fill it in, or remove the row")
    return found
