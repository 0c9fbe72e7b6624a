"""What differs between runs: configuration, data, versions, hardware, results, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunecli.config.errors import UserError
from tunecli.report import results
from tunecli.report.run_files import Run, flatten

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
        _section("results", [_results(run) for run in runs]),
        _section("speed", [_speed(run) for run in runs]),
    ]


def labels(runs: Sequence[Run]) -> list[str]:
    """The shortest ends of their paths that tell the runs apart.

    Raises:
        UserError: the same run twice.
    """
    paths = [run.path for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is named twice", fix="name runs that differ")
    for length in range(1, max(len(path.parts) for path in paths)):
        ends = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(ends)) == len(ends):
            return ends
    return [str(path) for path in paths]


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
        found["loss (last)"] = run.curves["loss"].values[-1]
    for result in results.results(run):
        found |= {f"{result.name} (last)": result.last.value, f"{result.name} (best)": result.best.value}
    return found


def _speed(run: Run) -> dict[str, Any]:
    return {
        "seconds": results.seconds(run),
        "tokens_per_second": results.tokens_per_second(run),
        "memory_peak_bytes": results.memory_peak_bytes(run),
    }
