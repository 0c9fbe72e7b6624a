"""What came out of a run, in figures: metrics before and after, speed, memory."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from tunecli.config.train import falls
from tunecli.report.run_files import Curve, Run


@dataclass(frozen=True, slots=True)
class Point:
    step: int
    value: float


@dataclass(frozen=True, slots=True)
class Result:
    """One metric of a run."""

    name: str
    first: Point
    last: Point
    best: Point

    @property
    def difference(self) -> float:
        return self.last.value - self.first.value

    @property
    def verdict(self) -> str:
        """better, worse or same: the last against the first."""
        if self.difference == 0:
            return "same"
        return "better" if (self.difference < 0) == falls(self.name) else "worse"


def results(run: Run) -> list[Result]:
    """Of every evaluation metric, those of single sources last; of the training loss where there is none."""
    evaluated = [name for name in run.curves if name.startswith("eval/")]
    names = sorted(evaluated, key=lambda name: name.count("/")) or [name for name in ("loss",) if name in run.curves]
    return [_result(name, run.curves[name]) for name in names]


def seconds(run: Run) -> float | None:
    return _values(run, "seconds")[-1] if _values(run, "seconds") else None


def tokens(run: Run) -> int | None:
    return int(_values(run, "tokens")[-1]) if _values(run, "tokens") else None


def tokens_per_second(run: Run) -> float | None:
    """The median of the logged ones."""
    return median(_values(run, "tokens_per_second")) if _values(run, "tokens_per_second") else None


def memory_peak_bytes(run: Run) -> float | None:
    return max(_values(run, "memory_peak_bytes"), default=None)


def _values(run: Run, name: str) -> list[float]:
    return run.curves[name].values if name in run.curves else []


def _result(name: str, curve: Curve) -> Result:
    points = [Point(step, value) for step, value in zip(curve.steps, curve.values, strict=True)]
    choose = min if falls(name) else max
    return Result(name, points[0], points[-1], choose(points, key=lambda point: point.value))
