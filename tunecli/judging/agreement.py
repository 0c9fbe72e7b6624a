"""How far a judge can be trusted: its verdicts against gold labels, and against themselves.

Which answer of a pair counts as the first is drawn by its content, as in most files the better one always stands
first: Cohen's kappa (1960) of a constant gold label would be 0 whatever the judge says. A tie is half right, and a
label of its own for kappa. Intervals: percentile bootstrap over pairs (`tunecli.ops.bootstrap`), none below 10 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunecli.judging.judge import Comparison
from tunecli.judging.questions import Compared, digest
from tunecli.ops import bootstrap

LEAST = 10
"""Pairs that are resampled."""
TIE = 2
"""Label of a tie; 0 and 1 are the two answers."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair, and what the judge said of it."""

    gold: int
    """which of the two is better, 0 or 1"""
    said: int
    """or TIE"""
    one_order: tuple[int, int] | None
    """what was said in each order alone; None: there is no order"""
    consistency: float | None


def judged(pair: Compared, found: Comparison, *, tie_margin: float) -> Judged:
    """
    Args:
        pair: whose first answer is the better one.
    """
    assert found.probability is not None
    first_is_gold = int(digest([pair.prompt, sorted((pair.first, pair.second))]), 16) % 2 == 0
    gold = 0 if first_is_gold else 1
    orders = None
    if found.as_first is not None and found.as_second is not None:
        orders = tuple(_label(share, gold, 0.0) for share in (found.as_first, found.as_second))
    return Judged(gold, _label(found.probability, gold, tie_margin), orders, found.consistency)  # type: ignore[arg-type]


def _label(probability: float, gold: int, margin: float) -> int:
    if abs(probability - 0.5) <= margin:
        return TIE
    return gold if probability > 0.5 else 1 - gold


def agreement(judgments: Sequence[Judged]) -> dict[str, bootstrap.Interval]:
    """accuracy, kappa, ties, and consistency where that is known; where there are two orders also one_order_accuracy,
    first_place (the share of verdicts for what stands first) and position_bias (the share of pairs whose orders
    name different answers, hence the same place). All in [0, 1] but kappa, in [-1, 1].

    Of few pairs low = high = value.
    """
    if not judgments:
        return {}
    found = _measured(_measures(judgments), len(judgments))
    # Of all pairs the value is scikit-learn's; resamples are computed together, which it cannot.
    return found | {"kappa": replace(found["kappa"], value=_kappa(judgments))} if "kappa" in found else found


def _kappa(judgments: Sequence[Judged]) -> float:
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score([each.gold for each in judgments], [each.said for each in judgments]))


def _measured(measures: bootstrap.Measures, size: int) -> dict[str, bootstrap.Interval]:
    if size >= LEAST:
        return bootstrap.intervals(measures, size)
    return {name: bootstrap.Interval(value, value, value) for name, value in bootstrap.values(measures, size).items()}


def _measures(judgments: Sequence[Judged]) -> bootstrap.Measures:
    gold = np.array([each.gold for each in judgments])
    said = np.array([each.said for each in judgments])
    shares: dict[str, np.ndarray] = {
        "accuracy": np.where(said == TIE, 0.5, said == gold),
        "ties": (said == TIE).astype(float),
    }
    if all(each.one_order is not None for each in judgments):
        orders = np.array([each.one_order for each in judgments])
        right = np.where(orders == TIE, 0.5, orders == gold[:, None])
        shares["one_order_accuracy"] = right.mean(1)
        # Shown first, the better answer is named where its place is liked; shown second, the other one is.
        shares["first_place"] = (right[:, 0] + 1 - right[:, 1]) / 2
        shares["position_bias"] = (orders[:, 0] != orders[:, 1]).astype(float)
    if all(each.consistency is not None for each in judgments):
        shares["consistency"] = np.array([each.consistency for each in judgments])

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        """`counts`: [resamples, pairs]"""
        total = counts.sum(1)
        found = {name: counts @ value / total for name, value in shares.items()}
        observed = counts @ (said == gold).astype(float) / total
        chance = (
            sum(
                (counts @ (gold == label).astype(float)) * (counts @ (said == label).astype(float))
                for label in (0, 1, TIE)
            )
            / total**2
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return found | {"kappa": (observed - chance) / (1 - chance)}

    return measures


def mean(scores: Sequence[float]) -> dict[str, bootstrap.Interval]:
    """score: of all texts that have one."""
    values = np.array(scores, float)
    return _measured(lambda counts: {"score": counts @ values / counts.sum(1)}, len(values)) if len(values) else {}


def correlations(gold: Sequence[float], scores: Sequence[float]) -> dict[str, bootstrap.Interval]:
    """Pearson's and Spearman's, of texts that have a score; none where one of the two never differs."""
    x, y = np.array(gold, float), np.array(scores, float)
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return {}
    pairs = {"pearson": (x, y), "spearman": (_ranks(x), _ranks(y))}

    def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
        return {name: _correlation(counts, *both) for name, both in pairs.items()}

    return _measured(measures, len(x))


def _correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = counts.sum(1)
    mean_x, mean_y = counts @ x / total, counts @ y / total
    covariance = counts @ (x * y) / total - mean_x * mean_y
    spread = (counts @ x**2 / total - mean_x**2) * (counts @ y**2 / total - mean_y**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return covariance / np.sqrt(spread)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values)


def as_json(measured: dict[str, bootstrap.Interval]) -> dict[str, Any]:
    return {name: {"value": each.value, "low": each.low, "high": each.high} for name, each in measured.items()}
