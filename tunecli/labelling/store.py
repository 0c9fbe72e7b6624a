"""What is done of a labelling run: a SQLite file in its directory with a row for each unit, safe under several
processes and a kill."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunecli.config.errors import UserError
from tunecli.judging.cache import PATIENCE, patiently

FILE = "units.sqlite"
TABLES = ("units (number INTEGER PRIMARY KEY, outcome TEXT)", "facts (name TEXT PRIMARY KEY, value TEXT)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one unit."""

    records: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """index of the row -> what is written of it"""
    left_out: dict[int, list[str]] = field(default_factory=dict)
    """index of the row -> why something of it is not"""


class Store:
    def __init__(self, run_dir: Path, inputs: dict[str, Any]) -> None:
        """
        Args:
            inputs: everything that the outcomes depend on.

        Raises:
            UserError: what is there was made from other inputs.
        """
        self._connection = sqlite3.connect(run_dir / FILE, timeout=PATIENCE, isolation_level=None)
        patiently(self._connection, "PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        for table in TABLES:
            patiently(self._connection, f"CREATE TABLE IF NOT EXISTS {table}")
        written = json.dumps(inputs, sort_keys=True)
        patiently(self._connection, "INSERT OR IGNORE INTO facts VALUES ('inputs', ?)", (written,))
        before = json.loads(self._fact("inputs"))
        if changed := sorted(name for name in before.keys() | inputs.keys() if before.get(name) != inputs.get(name)):
            raise UserError(
                f"some of it was labelled with another {', '.join(changed)}",
                where=str(run_dir),
                fix="start a new run; judgments that stay the same come from the cache",
            )

    def done(self) -> set[int]:
        return {number for (number,) in self._connection.execute("SELECT number FROM units")}

    def put(self, number: int, outcome: Outcome) -> None:
        row = (number, json.dumps(asdict(outcome)))
        patiently(self._connection, "INSERT OR IGNORE INTO units VALUES (?, ?)", row)

    def outcomes(self) -> Iterator[Outcome]:
        for (text,) in self._connection.execute("SELECT outcome FROM units ORDER BY number"):
            values = json.loads(text)
            yield Outcome(_by_row(values["records"]), _by_row(values["left_out"]))

    def count(self, process: str, usage: dict[str, Any]) -> None:
        """What the judge cost this process so far."""
        row = (f"usage {process}", json.dumps(usage))
        patiently(self._connection, "INSERT OR REPLACE INTO facts VALUES (?, ?)", row)

    def usage(self) -> dict[str, Any]:
        """Of all processes, also of those that were killed."""
        rows = self._connection.execute("SELECT value FROM facts WHERE name LIKE 'usage %' ORDER BY name").fetchall()
        total: dict[str, Any] = {}
        for (text,) in rows:
            total = _added(total, json.loads(text))
        return total

    def _fact(self, name: str) -> str:
        return str(self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0])


def _by_row(values: dict[str, Any]) -> dict[int, Any]:
    return {int(row): each for row, each in values.items()}


def _added(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Number by number, also within."""
    summed = dict(total)
    for name, value in more.items():
        before = summed.get(name)
        if isinstance(value, dict):
            summed[name] = _added(before or {}, value)
        elif before is None or value is None:
            summed[name] = value if before is None else before
        else:
            summed[name] = before + value
    return summed
