"""`columns`: each column that holds a text or a number, for a template as `"{v3} {text} It was {v2} {label}"`."""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import Columns


def convert(values: dict[str, Any]) -> Columns:
    return Columns({name: str(value) for name, value in values.items() if isinstance(value, str | int | float)})
