"""`data.columns`: the names that a format expects, each filled from a column of the row, from what stands within one
(`answers.text.0`: the first of the list `text` in the column `answers`), or from a text with such columns in braces.
Doubled braces stand for themselves."""

from __future__ import annotations

import re
from typing import Any

from tunecli.config.nearest import did_you_mean
from tunecli.data.examples import Unusable

NOTHING = object()
BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def mapped(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row with the expected names added."""
    return {**values, **{name: _filled(values, name, source) for name, source in columns.items()}}


def missing(values: dict[str, Any], source: str) -> str | None:
    """The first column that `source` names and the row lacks."""
    return next((column for column in _named(values, source) if _read(values, column) is NOTHING), None)


def no_column(values: dict[str, Any], name: str, column: str) -> tuple[str, str]:
    """What is wrong, and the fix."""
    return (
        f"no column {column!r}, which data.columns.{name} names; the row has: {', '.join(values) or 'none'}",
        f"{did_you_mean(column, values)}set data.columns.{name} to a column of the row",
    )


def _named(values: dict[str, Any], source: str) -> list[str]:
    if source in values or "{" not in source:
        return [source]
    return [found[1] for found in BRACES.finditer(source) if found[1] is not None]


def _filled(values: dict[str, Any], name: str, source: str) -> Any:
    absent = missing(values, source)
    if absent is not None:
        raise Unusable(*no_column(values, name, absent))
    if source in values or "{" not in source:
        return _read(values, source)
    # The command line's grammar leaves \\n as two characters.
    text = source.replace("\\n", "\n").replace("\\t", "\t")
    return BRACES.sub(lambda found: _piece(values, name, found), text)


def _read(values: dict[str, Any], column: str) -> Any:
    """What `column` names, where its dots lead into objects and lists; `NOTHING` if it is not there."""
    if column in values:
        return values[column]
    found: Any = values
    for part in column.split("."):
        if isinstance(found, list):
            found = found[int(part)] if part.isdecimal() and int(part) < len(found) else NOTHING
        else:
            found = found.get(part, NOTHING) if isinstance(found, dict) else NOTHING
    return found


def _piece(values: dict[str, Any], name: str, found: re.Match[str]) -> str:
    if found[1] is None:
        return found[0][0]
    value = _read(values, found[1])
    if isinstance(value, str | int | float):
        return str(value)
    raise Unusable(
        f"column {found[1]!r}, which data.columns.{name} puts into a text, holds {value!r:.60}",
        "write it as a string, remove the row, or take it out of the text",
    )
