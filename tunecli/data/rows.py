"""What reading gives: rows, and in their places those that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    source: str
    """The file as the user would find it, or the Hub id."""
    number: int
    """From 1: the line of a .jsonl or .txt file, the element of a .json list, the row that a spreadsheet shows for a
    .csv file (its header is row 1), the row of anything else."""
    values: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.source} row {self.number}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    source: str
    number: int
    what: str
    """what is wrong"""
    fix: str
    """how to mend it"""

    @property
    def where(self) -> str:
        return f"{self.source} row {self.number}"
