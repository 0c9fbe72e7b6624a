"""What a run directory says, also while its run goes on or after it was killed. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tunecli.config.errors import UserError
from tunecli.config.run_lock import is_locked

LEFT_OUT = 5
"""Rows that are shown for each reason to leave them out."""
LEFT_OUT_READ = 10_000
"""Rows of left_out.jsonl that are looked at."""
RESUMED = "# resumed with:"
"""Stands in overrides.txt before those of a resume."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over the steps; values that are no finite numbers are left out."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Event:
    after: int | None
    """the last step that was logged before it; None before the first"""
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    path: Path
    config: dict[str, Any]
    """dotted key -> value"""
    origins: dict[str, str]
    """dotted key -> what set it; empty where that was not kept"""
    overrides: list[str]
    state: str
    """finished, interrupted, running, killed, or not started"""
    num_steps: int | None
    """that it is to take; None where it never said"""
    curves: dict[str, Curve]
    """in the order in which they appear in metrics.jsonl"""
    samples: list[dict[str, Any]]
    environment: dict[str, Any]
    left_out: dict[str, list[dict[str, Any]]]
    """why -> the first rows that were left out for it"""
    left_out_counts: dict[str, int]
    events: list[Event]

    @property
    def step(self) -> int:
        """The last one that was logged."""
        return max((curve.steps[-1] for curve in self.curves.values()), default=0)


def read_run(path: Path) -> Run:
    """Read a run directory. Of metrics and samples, a last line that a kill cut short is left out.

    Raises:
        UserError: not a run directory.
    """
    path = path.resolve()
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run directory", fix="name one that holds a config.yaml")
    environment = _json(path / "environment.json")
    left_out = list(islice(json_lines(path / "left_out.jsonl"), LEFT_OUT_READ))
    log = _text(path / "log.txt").splitlines()
    curves = _curves(path)
    return Run(
        path=path,
        config=dict(flatten(yaml.safe_load(_text(path / "config.yaml")))),
        origins=_json(path / "origins.json"),
        overrides=_text(path / "overrides.txt").splitlines(),
        state=_state(path, trained=bool(curves)),
        num_steps=_num_steps(log),
        curves=curves,
        samples=[line for line in json_lines(path / "samples.jsonl") if {"step", "prompt", "answer"} <= line.keys()],
        environment=environment,
        left_out=_first_of_each(left_out),
        left_out_counts=_left_out_counts(environment, left_out),
        events=_events(log),
    )


def flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all below `node`; lists are values, and so are empty dicts."""
    if isinstance(node, dict) and (node or not path):
        for key, value in node.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _curves(path: Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in json_lines(path / "metrics.jsonl"):
        step = line.get("step")
        if not isinstance(step, int):
            continue
        for name, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and name != "step":
                curve = curves.setdefault(name, Curve([], []))
                curve.steps.append(step)
                curve.values.append(value)
    return curves


def _state(path: Path, *, trained: bool) -> str:
    state = _json(path / "status.json").get("state")
    if state not in (None, "running"):
        return str(state)
    if is_locked(path):
        return "running"
    return "killed" if trained or state else "not started"


def _num_steps(log: list[str]) -> int | None:
    for line in reversed(log):
        if found := re.match(r"step \d+/(\d+)  ", line):
            return int(found[1])
    return None


def _events(log: list[str]) -> list[Event]:
    """What the run said besides its metrics."""
    events: list[Event] = []
    after: int | None = None
    for line in log:
        if found := re.match(r"step (\d+)(/\d+)?  ", line):
            after = int(found[1])
        elif line.strip() and not line.startswith("  "):  # indented: samples, and what to do next
            if resumed := re.match(r"resumes after step (\d+)", line):
                after = int(resumed[1])
            events.append(Event(after, line))
    return events


def _first_of_each(left_out: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    first: dict[str, list[dict[str, Any]]] = {}
    for entry in left_out:
        rows = first.setdefault(str(entry.get("why")), [])
        if len(rows) < LEFT_OUT:
            rows.append(entry)
    return first


def _left_out_counts(environment: dict[str, Any], left_out: list[dict[str, Any]]) -> dict[str, int]:
    """As counted in preparation; where data were streamed, as listed."""
    counts: Counter[str] = Counter()
    data = environment.get("data", {})
    for part in list(data.values())[: 1 if read_together(data) else None]:
        counts.update(part.get("left_out", {}))
    return dict(counts or Counter(str(entry.get("why")) for entry in left_out))


def read_together(data: dict[str, Any]) -> bool:
    """Whether validation is a share of the rows that training reads, which are counted once then."""
    known = [part.get("fingerprints") for part in data.values()]
    return len(known) > 1 and known[0] is not None and known[1:] == known[:-1]


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file; what is not one is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _json(path: Path) -> dict[str, Any]:
    return json.loads(_text(path)) if path.is_file() else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
