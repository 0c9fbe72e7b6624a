"""How sure a metric is, from the examples that it was counted on: the percentile bootstrap (Efron, 1979), paired
where the same examples were answered twice.

`intervals` and `differences` take metrics of any kind: each resample draws as many examples as there are, with
replacement, and the metrics are computed anew from how often each was drawn. Examples of several tasks are drawn task
by task. Departs from the plain percentile interval in one thing: it always holds the value itself, which it else may
not for a metric that is biased in small samples, as the calibration error is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2_000
"""Resamples."""
TOGETHER = 4_000_000
"""Counts of examples that are held in memory at once."""

Measures = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From how often each example counts, [resamples, examples], to metrics [resamples]; NaN where a resample gives none
"""


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    low: float
    high: float
    """with `low` the borders of the 95 % interval"""


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    p: float
    """that it comes from chance: twice the share of resamples on the other side of zero, at most 1, at least one of
    them"""


def values(measures: Measures, size: int) -> dict[str, float]:
    """The metrics of `size` examples, each once; those that they give."""
    found = measures(np.ones((1, size)))
    return {name: float(value[0]) for name, value in found.items() if np.isfinite(value[0])}


def intervals(
    measures: Measures, size: int, *, strata: Sequence[np.ndarray] = (), seed: int = 0
) -> dict[str, Interval]:
    """Each metric with its 95 % interval.

    Args:
        strata: indices of the examples of each task; none: all are of one.
    """
    drawn = _drawn([measures], size, strata, seed)
    found = values(measures, size)
    return {name: Interval(value, *_limits(drawn[0][name], value)) for name, value in found.items()}


def differences(
    before: Measures, after: Measures, size: int, *, strata: Sequence[np.ndarray] = (), seed: int = 0
) -> dict[str, Difference]:
    """By how much each metric is more in `after`, which measures the same examples; of the metrics of both."""
    first, second = values(before, size), values(after, size)
    drawn = _drawn([before, after], size, strata, seed)
    found = {}
    for name in first.keys() & second.keys():
        value, resampled = second[name] - first[name], drawn[1][name] - drawn[0][name]
        found[name] = Difference(value, *_limits(resampled, value), _chance(resampled))
    return {name: found[name] for name in second if name in found}


def _drawn(
    measures: Sequence[Measures], size: int, strata: Sequence[np.ndarray], seed: int
) -> list[dict[str, np.ndarray]]:
    """Of each of `measures` its metrics in the same resamples."""
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in measures]
    for counts in _counts(size, strata or [np.arange(size)], seed):
        for measure, found in zip(measures, parts, strict=True):
            found.append(measure(counts))
    return [{name: np.concatenate([part[name] for part in found]) for name in found[0]} for found in parts]


def _counts(size: int, strata: Sequence[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """[some resamples, examples] float64: how often each example is drawn."""
    generator = np.random.default_rng(seed)
    step = max(1, TOGETHER // max(size, 1))
    for start in range(0, DRAWS, step):
        rows = min(step, DRAWS - start)
        counts = np.zeros((rows, size))
        for stratum in strata:
            number = len(stratum)
            places = generator.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
            drawn = np.bincount(places.ravel(), minlength=rows * number)
            counts[:, stratum] = drawn.reshape(rows, number)
        yield counts


def _limits(resampled: np.ndarray, value: float) -> tuple[float, float]:
    known = resampled[np.isfinite(resampled)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (value, value)
    return min(float(low), value), max(float(high), value)


def _chance(resampled: np.ndarray) -> float:
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return 1.0
    least = min((known <= 0).mean(), (known >= 0).mean())
    return float(min(1.0, max(2 * least, 1 / len(known))))
