"""How sure a share is, from the examples that it was counted on: the percentile bootstrap (Efron, 1979), paired where
the same examples were answered twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    low: float
    high: float
    """with `low` the borders of the 95 % interval"""


def share(right: Sequence[bool]) -> Interval:
    """The share of examples that are right, in [0, 1]."""
    return _mean(np.asarray(right, np.float64))


def gain(before: Sequence[bool], after: Sequence[bool]) -> Interval:
    """By how much the share rose, in [-1, 1]; example i of one is example i of the other."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} examples before and {len(after)} after are not the same examples")
    return _mean(np.asarray(after, np.float64) - np.asarray(before, np.float64))


def _mean(values: np.ndarray) -> Interval:
    """Values are few (-1, 0, 1), so a resample is a draw of how often each occurs."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), RESAMPLES)
    low, high = np.quantile(drawn @ distinct / len(values), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
