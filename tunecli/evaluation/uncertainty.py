"""Metrics of predictions, and what differs between two models' predictions of the same rows, with how sure that is.

Shares of rows that are right have intervals of their own kind (`tunecli.ops.proportions`); everything else is
resampled (`tunecli.ops.bootstrap`), and has no interval where that would be a false one: of few examples percentile
intervals are too narrow (Hesterberg, 2015), and where all resamples agree they know nothing of what was not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.measures import Record, by_task, measures_of, right_of, shares
from tunecli.ops import bootstrap, proportions

LEAST = 10
"""Examples that are resampled. Of n they give an interval of the mean that is 1.96 / t(n - 1) * sqrt((n - 1) / n)
times as wide as Student's: 0.63 of it with 5, 0.82 with 10."""


@dataclass(frozen=True, slots=True)
class Metric:
    value: float
    low: float | None = None
    high: float | None = None
    """with `low` the borders of the 95 % interval; None where there is none"""


@dataclass(frozen=True, slots=True)
class Difference(Metric):
    p: float | None = None
    """that it comes from chance"""


@dataclass(frozen=True, slots=True)
class McNemar:
    only_first: int
    """rows that only the first model has right"""
    only_this: int
    p: float


def metrics_of(records: Sequence[Record], kind: Kind) -> dict[str, Metric]:
    sampled = bootstrap.intervals(measures_of(records, kind), len(records), strata=_strata(records))
    found = {
        name: Metric(each.value, each.low, each.high) if _is_sure(name, each, records) else Metric(each.value)
        for name, each in sampled.items()
    }
    for name, right in shares(records, kind).items():
        known = [one for one in right if one is not None]
        if not known:
            continue
        each = proportions.share(known)
        found[name] = Metric(each.value, each.low, each.high)
    return found


def differences_of(first: Sequence[Record], other: Sequence[Record], kind: Kind) -> dict[str, Difference]:
    """`other` minus `first`, which are of the same rows; of the metrics of both."""
    measures = measures_of(first, kind), measures_of(other, kind)
    sampled = bootstrap.differences(*measures, len(first), strata=_strata(first))
    found = {
        name: Difference(each.value, each.low, each.high, each.p)
        if _is_sure(name, each, first)
        else Difference(each.value)
        for name, each in sampled.items()
    }
    before, after = shares(first, kind), shares(other, kind)
    for name in before.keys() & after.keys():
        if pairs := _judged(before[name], after[name]):
            each = proportions.gain([a for a, _ in pairs], [b for _, b in pairs])
            found[name] = Difference(each.value, each.low, each.high, each.p)
    return found


def mcnemar(first: Sequence[Record], other: Sequence[Record], kind: Kind) -> McNemar | None:
    """None of what is not right or wrong as a whole."""
    if not (pairs := _judged(right_of(first, kind), right_of(other, kind))):
        return None
    only_first, only_this = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return McNemar(only_first, only_this, proportions.gain([a for a, _ in pairs], [b for _, b in pairs]).p)


def _judged(first: Sequence[bool | None], other: Sequence[bool | None]) -> list[tuple[bool, bool]]:
    return [(a, b) for a, b in zip(first, other, strict=True) if a is not None and b is not None]


def _is_sure(name: str, each: bootstrap.Interval, records: Sequence[Record]) -> bool:
    return each.low < each.high and _examples(name, records) >= LEAST


def _examples(name: str, records: Sequence[Record]) -> int:
    """That a metric is of: those of its task, those that were answered."""
    metric, _, task = name.partition("/")
    own = [record for record in records if not task or record.get("task") == task]
    return sum(metric in record or metric in record.get("counts", {}) for record in own) or len(own)


def _strata(records: Sequence[Record]) -> list:
    return list(by_task(records).values())
