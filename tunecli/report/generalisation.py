"""The generalisation gap of a run: what it scores on as many training rows as it has validation rows, drawn by seed,
minus what it scores on those."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tunecli.config.counted import counted
from tunecli.report.numbers import difference, shown, unit_of

NAME = "generalisation.json"
SAID = ("accuracy", "f1", "f1_micro", "pearson")
"""The first of these that a run has is told in one line."""


@dataclass(frozen=True, slots=True)
class Gap:
    examples: int
    """training rows that were drawn"""
    train: dict[str, float]
    validation: dict[str, float]

    @property
    def rows(self) -> Iterator[tuple[str, str, float, float, float]]:
        """Name, unit, score on training rows, on validation rows, and their difference."""
        for name, value in self.train.items():
            if name in self.validation:
                unit = unit_of(name.partition("/")[0])
                yield name, unit, value, self.validation[name], value - self.validation[name]


def write_gap(run_dir: Path, examples: int, train: Mapping[str, float], validation: Mapping[str, float]) -> Gap:
    """Names begin with `eval/`."""
    gap = Gap(examples, _plain(train), _plain(validation))
    (run_dir / NAME).write_text(json.dumps(asdict(gap), indent=2), encoding="utf-8")
    return gap


def read_gap(run_dir: Path) -> Gap | None:
    """None of a run that has none."""
    path = run_dir / NAME
    return Gap(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def as_line(gap: Gap) -> str:
    """Empty where nothing is scored that a person would ask for first."""
    rows = {name: row for name, *row in gap.rows}
    name = next((name for name in SAID if name in rows), None)
    if name is None:
        return ""
    unit, train, _, gained = rows[name]
    seen = counted(gap.examples, "training row")
    return f"{name} on {seen}: {shown(train, unit)}, {difference(gained, unit)} against validation"


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval/"): value for name, value in metrics.items() if name.startswith("eval/")}
