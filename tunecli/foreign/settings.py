"""The keys and values of a foreign training file, each taken once; what nobody took is reported."""

from __future__ import annotations

from typing import Any

import yaml

from tunecli.config.errors import UserError


class Settings:
    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.where = where
        self.values = {key: value for key, value in values.items() if value is not None and value != ""}
        self.asked: set[str] = set()
        """All keys that there are, as far as the readers know them"""

    def take(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return self.values.pop(key, default)

    def text(self, key: str) -> str | None:
        value = self.take(key)
        return None if value is None else str(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.take(key, default)
        return value.strip().lower() in ("true", "yes", "auto", "1") if isinstance(value, str) else bool(value)

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self.take(key, default)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{key} = {show(value)} is no number", where=self.where, fix="mend it there") from None
        return int(number) if number.is_integer() and not isinstance(value, float) else number

    def count(self, key: str, default: int | None = None) -> int | None:
        value = self.number(key, default)
        if value is not None and value != int(value):
            raise UserError(f"{key} = {value} is no whole number", where=self.where, fix="mend it there")
        return None if value is None else int(value)

    def words(self, key: str) -> list[str]:
        """A list, or its parts joined by commas."""
        value = self.take(key, [])
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        return [str(part).strip() for part in parts]

    def mappings(self, key: str) -> list[dict[str, Any]]:
        """A list of mappings; a text stands for a mapping that has a path only."""
        value = self.take(key, [])
        entries = value if isinstance(value, list) else [value]
        entries = [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
        if not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{key} is no list of mappings", where=self.where, fix="write `- path: ...` entries")
        return entries


def show(value: Any) -> str:
    """As YAML on one line, cut to what fits into a comment."""
    text = " ".join(yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").split())
    return text if len(text) <= 60 else f"{text[:57]}..."
