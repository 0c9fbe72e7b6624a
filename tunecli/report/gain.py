"""Before and after: what share of the validation examples the model got right, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunecli.ops.bootstrap import Interval
from tunecli.ops.proportions import gain, share
from tunecli.report.run_files import json_lines

NAMES = {
    "exact_match": "says the right answer",
    "choice_accuracy": "gives the right answer the highest probability",
    "preferred": "gives the better answer the higher score",
    "accuracy": "gives the right label the highest probability",
}
"""Metric -> what the model does in so many of the examples."""


@dataclass(frozen=True, slots=True)
class Gain:
    metric: str
    examples: int
    before: Interval
    after: Interval
    gain: Interval


def gains(run_dir: Path) -> list[Gain]:
    """Step 0 against the model that the run ended with, for each metric that counts examples; empty where a run was
    not evaluated at step 0."""
    by_step = {record["step"]: record for record in json_lines(run_dir / "answers.jsonl")}
    if 0 not in by_step or len(by_step) < 2:
        return []
    first, last = by_step[0], by_step[result_step(run_dir, max(by_step))]
    metrics = [name for name in first if name != "step" and name in last]
    return [
        Gain(name, len(first[name]), share(first[name]), share(last[name]), gain(first[name], last[name]))
        for name in metrics
    ]


def as_lines(found: list[Gain]) -> Iterator[str]:
    """For a terminal of 80 columns; percentages with their 95 % intervals."""
    for each in found:
        yield f"{NAMES.get(each.metric, each.metric)}, of {each.examples} held-out examples:"
        yield f"  before {_percent(each.before)}   after {_percent(each.after)}"
        sure = ": may be chance" if each.gain.low <= 0 <= each.gain.high else ""
        points = f"{100 * each.gain.value:+.1f} points [{100 * each.gain.low:+.1f}, {100 * each.gain.high:+.1f}]"
        yield f"  gain {points}{sure}"


def _percent(interval: Interval) -> str:
    return f"{interval.value:6.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def result_step(run_dir: Path, last: int) -> int:
    """The step of the kept best model, where that is the result."""
    kept = (int(folder.name.removeprefix("step_")) for folder in (run_dir / "best").glob("step_*"))
    return max(kept, default=last)
