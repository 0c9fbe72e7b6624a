"""What differs between runs: configuration, data, versions, hardware, results, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunecli.engine.run_names import names_of
from tunecli.report import results
from tunecli.report.run_files import Run, flatten

LAST, BEST = " (last)", " (best)"
PLACE = "output_dir"
"""Differs between any two runs, and says nothing."""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    differing: dict[str, list[Any]]
    """name -> its value in each run, None where a run has none"""
    equal: int
    """how many others are the same in all runs"""


def compare(runs: Sequence[Run]) -> list[Section]:
    environments = [run.environment for run in runs]
    return [
        _section("configuration", [{key: run.config[key] for key in run.config if key != PLACE} for run in runs]),
        _section("data", [dict(flatten(each.get("data", {}))) for each in environments]),
        _section("versions", [_versions(each) for each in environments]),
        _section("hardware", [dict(flatten(each.get("hardware", {}))) for each in environments]),
        _section("results", _joined([_results(run) for run in runs])),
        _section("speed", [_speed(run) for run in runs]),
    ]


def labels(runs: Sequence[Run]) -> list[str]:
    """The shortest names that tell the runs apart.

    Raises:
        UserError: the same run twice.
    """
    return names_of([str(run.path) for run in runs])


def _section(title: str, columns: Sequence[Mapping[str, Any]]) -> Section:
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = {name: [column.get(name) for column in columns] for name in names}
    differing = {name: values for name, values in rows.items() if any(value != values[0] for value in values[1:])}
    return Section(title, differing, len(rows) - len(differing))


def _versions(environment: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: environment.get(name) for name in ("python", "platform", "git_commit") if name in environment}
    return given | environment.get("packages", {})


def _results(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {"state": run.state, "step": run.step, "tokens": results.tokens(run)}
    if "loss" in run.curves:
        found["loss" + LAST] = run.curves["loss"].values[-1]
    for result in results.results(run):
        found |= {result.name + LAST: result.last.value, result.name + BEST: result.best.value}
    return found


def _joined(columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for a metric whose last value is its best one in every run."""
    metrics = {name.removesuffix(BEST) for column in columns for name in column if name.endswith(BEST)}
    same = {name for name in metrics if all(column.get(name + LAST) == column.get(name + BEST) for column in columns)}
    return [
        {
            name.removesuffix(LAST) if name.removesuffix(LAST) in same else name: value
            for name, value in column.items()
            if name.removesuffix(BEST) not in same
        }
        for column in columns
    ]


def _speed(run: Run) -> dict[str, Any]:
    return {
        "seconds": results.seconds(run),
        "tokens_per_second": results.tokens_per_second(run),
        "memory_peak_bytes": results.memory_peak_bytes(run),
    }
