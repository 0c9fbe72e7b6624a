"""What a run lost, or gained, of what its base model could do: `retained.json`, which `tunecli.retain` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunecli.config.counted import counted
from tunecli.config.train import falls
from tunecli.report.numbers import TOO_FEW, difference, shown, unit_of

FILE = "retained.json"
FIRST = ("exact_match", "choice_accuracy", "accuracy", "f1", "rougeL", "pearson", "perplexity")
"""The first of these that was measured is told in one line."""


@dataclass(frozen=True, slots=True)
class Change:
    metric: str
    base: float
    tuned: float
    difference: float
    low: float | None
    high: float | None
    """with `low` the borders of the 95 % interval of the difference; None where there is none"""

    @property
    def unit(self) -> str:
        return unit_of(self.metric.partition("/")[0])

    @property
    def interval(self) -> str:
        """Empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"[{difference(self.low, self.unit)}, {difference(self.high, self.unit)}]"

    @property
    def verdict(self) -> str:
        """better, worse, the same, may be chance, or why that is not known."""
        if self.difference == 0:
            return "the same"
        if self.low is None or self.high is None:
            return TOO_FEW
        if self.low <= 0 <= self.high:
            return "may be chance"
        return "worse" if (self.difference > 0) == falls(self.metric) else "better"


@dataclass(frozen=True, slots=True)
class Retained:
    asked: str
    """as behind `tune eval RUN`"""
    data: str
    examples: int
    changes: list[Change]

    @property
    def first(self) -> Change:
        """That a person would ask for first."""
        known = {change.metric: change for change in self.changes}
        return next((known[name] for name in FIRST if name in known), self.changes[0])


def read_retained(run_dir: Path) -> list[Retained]:
    """None of a run that was not asked."""
    path = run_dir / FILE
    return [_retained(entry) for entry in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def _retained(entry: dict[str, Any]) -> Retained:
    base, tuned = entry["runs"]
    changes = [
        Change(
            name,
            base["metrics"][name]["value"],
            tuned["metrics"][name]["value"],
            each["value"],
            each["low"],
            each["high"],
        )
        for name, each in tuned["differences"].items()
    ]
    return Retained(entry["asked"], entry["data"], entry["examples"], changes)


def as_lines(found: Sequence[Retained]) -> Iterator[str]:
    """For a terminal of 80 columns."""
    if found:
        yield "what the base could do, base against tuned:"
    for each in found:
        change, unit = each.first, each.first.unit
        yield f"  {each.data}, {counted(each.examples, 'example')}: {change.metric.replace('_', ' ')}"
        by = f"{difference(change.difference, unit)} {change.interval}".rstrip()
        yield f"    {shown(change.base, unit)} to {shown(change.tuned, unit)}: {by}, {change.verdict}"
