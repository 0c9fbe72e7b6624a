"""Curves as SVG paths in a box of 1000 by 1000 that the page stretches; the texts around it are HTML, so that they
keep their size on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tunecli.report.numbers import shown, tick, unit_of
from tunecli.report.run_files import Curve

SIZE = 1000
SMOOTHED_FROM = 60
"""Points from which on a smooth line is drawn over faint dots."""
Limits = tuple[float, float]
"""lowest and highest number of an axis"""
MAX_POINTS = 1500
"""Of one curve on the page."""
COLOURS = 8
NOT_NOISY = ("learning_rate", "memory_peak_bytes")
"""Metrics that are drawn as they are, however many points there are."""
FROM_ZERO = ("learning_rate", "grad_norm", "tokens_per_second", "memory_peak_bytes")
"""Metrics whose axis begins at zero."""


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    """percent of the axis, from the left or from the top"""
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    colour: int
    curve: Curve
    """what is drawn of it"""
    last: str
    dots: str
    path: str
    density: str
    """of the dots: plain, faint under a smooth line, or none"""


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    unit: str
    wide: bool
    steps: Limits
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]

    def numbers(self) -> dict[str, Any]:
        """What the page's script needs to know."""
        lines = [{"label": line.label, "steps": line.curve.steps, "values": line.curve.values} for line in self.lines]
        return {"title": self.title, "unit": self.unit, "low": self.steps[0], "high": self.steps[1], "lines": lines}


def draw(metric: str, title: str, curves: Sequence[tuple[str, int, Curve]], *, wide: bool = False) -> Chart:
    """`curves`: label, number of the colour, and at least one point of each."""
    unit, zero = unit_of(metric), metric in FROM_ZERO
    steps = _steps([curve for _, _, curve in curves])
    low, high = _range([value for _, _, curve in curves for value in curve.values])
    margin = 0.05 * (high - low)
    values = (0.0 if zero and low >= 0 else low - margin, high + margin)
    if unit == "share":
        values = (max(values[0], 0.0), min(values[1], 1.0))
    scale = 1e9 if unit == "bytes" else 1.0
    y_step = nice_step((values[1] - values[0]) / scale, 4) * scale
    x_step = max(1.0, nice_step(steps[1] - steps[0], 5))
    return Chart(
        title=title,
        unit=unit,
        wide=wide,
        steps=steps,
        x_ticks=[Tick(100 * _share(at, steps), f"{at:g}") for at in _multiples(steps, x_step)],
        y_ticks=[Tick(100 - 100 * _share(at, values), tick(at, y_step, unit)) for at in _multiples(values, y_step)],
        lines=[_line(metric, label, colour, curve, (steps, values)) for label, colour, curve in curves],
    )


def nice_step(width: float, parts: int) -> float:
    """1, 2, 2.5 or 5 times a power of ten, so that at most about `parts` of them fit into `width`."""
    rough = width / parts
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def smooth(values: Sequence[float]) -> list[float]:
    """A moving mean, taken twice, around each value: it lags behind nothing."""
    radius = max(2, len(values) // 50)
    return _moving_mean(_moving_mean(values, radius), radius)


def thinned(values: Sequence[float]) -> list[int]:
    """Indices of at most `MAX_POINTS` values: most spread evenly, and of every stretch the lowest and the highest."""
    number = len(values)
    if number <= MAX_POINTS:
        return list(range(number))
    kept = {0, number - 1, *range(0, number, math.ceil(number / (MAX_POINTS // 2)))}
    width = math.ceil(number / (MAX_POINTS // 8))
    for start in range(0, number, width):
        stretch = range(start, min(start + width, number))
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def _line(metric: str, label: str, colour: int, curve: Curve, limits: tuple[Limits, Limits]) -> Line:
    """`limits`: of the steps and of the values."""
    steps, values = limits
    few, noisy = len(curve.values) < SMOOTHED_FROM, metric not in NOT_NOISY
    heights = smooth(curve.values) if noisy and not few else curve.values
    kept = thinned(curve.values)
    x = [SIZE * _share(curve.steps[i], steps) for i in kept]
    dots = [SIZE - SIZE * _share(curve.values[i], values) for i in kept]
    line = [SIZE - SIZE * _share(heights[i], values) for i in kept]
    return Line(
        label=label,
        colour=colour % COLOURS,
        curve=Curve([curve.steps[i] for i in kept], [curve.values[i] for i in kept]),
        last=shown(curve.values[-1], unit_of(metric)),
        dots="".join(f"M{left:.1f} {top:.1f}h0" for left, top in zip(x, dots, strict=True)),
        path="M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in zip(x, line, strict=True)),
        density="plain" if few else "faint" if noisy else "none",
    )


def _steps(curves: Sequence[Curve]) -> Limits:
    """From the first step to the last; from step 0 where the first is near it."""
    low, high = _range([step for curve in curves for step in (curve.steps[0], curve.steps[-1])])
    return (0.0 if 0 < low < 0.1 * high else low, high)


def _range(numbers: list[float]) -> Limits:
    """Lowest and highest; where they are the same, some room around them."""
    low, high = min(numbers), max(numbers)
    room = 0.0 if high - low > 1e-9 * abs(high) else abs(high) / 10 or 1.0
    return low - room, high + room


def _share(number: float, limits: Limits) -> float:
    return (number - limits[0]) / (limits[1] - limits[0])


def _multiples(limits: Limits, step: float) -> list[float]:
    first, last = math.ceil(limits[0] / step - 1e-9), math.floor(limits[1] / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _moving_mean(values: Sequence[float], radius: int) -> list[float]:
    sums = [0.0, *accumulate(values)]
    last = len(values) - 1
    # Near the ends fewer are taken, as many on either side: a falling curve would else begin too low.
    reach = [max(radius // 4, min(radius, i, last - i)) for i in range(len(values))]
    edges = [(max(0, i - n), min(last, i + n) + 1) for i, n in enumerate(reach)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]
