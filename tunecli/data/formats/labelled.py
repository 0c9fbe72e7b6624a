"""`classification`: a text, and its label. `pair_classification`: two texts, and a label for how they relate."""

from __future__ import annotations

import json
from typing import Any

from tunecli.data.examples import Labelled, Unusable
from tunecli.data.formats import fields


def convert(values: dict[str, Any]) -> Labelled:
    return Labelled(_text(values, "text"), labels=labels_of(values))


def convert_pair(values: dict[str, Any]) -> Labelled:
    return Labelled(_text(values, "text"), _text(values, "text_pair"), labels_of(values))


def _text(values: dict[str, Any], column: str) -> str:
    found = fields.text(values, column)
    if not found.strip():
        raise Unusable(f"column {column!r} is blank", "fill it in, or remove the row")
    return found


def labels_of(values: dict[str, Any]) -> tuple[str, ...]:
    """One label, or a list of them, each a text or a number; a table has the list as JSON."""
    value = fields.required(values, "label")
    several = value if isinstance(value, list) else _listed(value)
    return tuple(_label(each) for each in several)


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, str) or not value.strip().startswith("["):
        return [value]
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        return [value]
    return found if isinstance(found, list) else [value]


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables with gaps store whole numbers
    if isinstance(value, int | float) and value == value:
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise Unusable(
        f"column 'label' holds {value!r:.60}, no label",
        "write a text or a number, or a list of them; name another column with data.columns.label=COLUMN",
    )
