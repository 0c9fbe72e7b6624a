"""Resampled metrics: with each example once they are those of the libraries, and drawn twice they count twice."""

from __future__ import annotations

import numpy as np
import pytest

from tunecli.config.evaluation import EvaluationConfig
from tunecli.evaluation import metrics, texts
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.measures import measures_of
from tunecli.evaluation.records import add_text_scores
from tunecli.ops.bootstrap import differences, intervals, values

LABELS = ["a", "b", "c"]


def records(kind: Kind, number: int = 40, seed: int = 0) -> tuple[list[dict], dict[str, float]]:
    """Random predictions, and their metrics by the libraries."""
    draw = np.random.default_rng(seed)
    losses = [{"loss": float(draw.random()), "units": 1.0} for _ in range(number)]
    if kind is Kind.regression:
        expected, predicted = draw.integers(5, size=number).astype(float), draw.normal(size=number).round(1)
        found = [{"expected": e, "predicted": p} for e, p in zip(expected.tolist(), predicted.tolist(), strict=True)]
        known = metrics.regression(predicted, expected)
    elif kind is Kind.multi_label:
        logits, targets = draw.normal(size=(number, 3)), draw.random((number, 3)) > 0.5
        names, some = np.array(LABELS), dict.fromkeys(LABELS, 0.5)
        found = [
            {"expected": names[t].tolist(), "predicted": names[x > 0].tolist(), "probabilities": some}
            for x, t in zip(logits, targets, strict=True)
        ]
        known = metrics.multi_label(logits, targets)
    elif kind is Kind.tags:
        tags = ["O", "B-X", "I-X", "B-Y", "I-Y"]
        rows = [[[tags[i] for i in draw.integers(5, size=6)] for _ in range(2)] for _ in range(number)]
        found = [{"expected": e, "predicted": p} for e, p in rows]
        known = metrics.tagging([p for _, p in rows], [e for e, _ in rows])
    elif kind is Kind.text:
        said = ["".join(draw.choice(list("ab cd"), size=int(draw.integers(1, 30)))) for _ in range(number)]
        right = ["".join(draw.choice(list("ab cd"), size=20)) for _ in range(number)]
        found = [{"predicted": s, "expected": r, "exact_match": s == r} for s, r in zip(said, right, strict=True)]
        add_text_scores(found, EvaluationConfig(rouge=number, bleu=number, chrf=number))
        known = texts.rouge(said, right) | texts.bleu(said, right) | texts.chrf(said, right)
    else:
        logits, targets = 2 * draw.normal(size=(number, 3)), draw.integers(3, size=number)
        sure = metrics.softmax(logits)
        found = [
            {"expected": LABELS[t], "predicted": LABELS[int(p.argmax())], "probability": float(p.max())}
            for p, t in zip(sure, targets, strict=True)
        ]
        known = metrics.single_label(logits, targets)
    return [one | loss for one, loss in zip(found, losses, strict=True)], known


KINDS = [Kind.single_label, Kind.multi_label, Kind.regression, Kind.tags, Kind.text]


@pytest.mark.parametrize("kind", KINDS)
def test_once_each_they_are_the_libraries(kind: Kind) -> None:
    each, known = records(kind)
    found = values(measures_of(each, kind), len(each))
    assert {name: found[name] for name in known} == pytest.approx(known, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_twice_an_example_counts_twice(kind: Kind) -> None:
    each, _ = records(kind)
    counts = np.random.default_rng(3).integers(0, 4, size=len(each))
    repeated = [record for record, count in zip(each, counts, strict=True) for _ in range(count)]
    direct = values(measures_of(repeated, kind), len(repeated))
    weighted = measures_of(each, kind)(counts[None].astype(float))
    assert {name: float(value[0]) for name, value in weighted.items()} == pytest.approx(direct, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_and_differences(kind: Kind) -> None:
    each, _ = records(kind)
    measures = measures_of(each, kind)
    found = intervals(measures, len(each))
    assert found == intervals(measures, len(each))
    for interval in found.values():
        assert interval.low <= interval.value <= interval.high
    assert all(d.value == d.low == d.high == 0 and d.p == 1 for d in differences(measures, measures, 40).values())


def test_a_clear_difference_is_no_chance() -> None:
    each, _ = records(Kind.single_label)
    right = [record | {"predicted": record["expected"]} for record in each]
    found = differences(measures_of(each, Kind.single_label), measures_of(right, Kind.single_label), len(each))
    assert found["accuracy"].low > 0 and found["accuracy"].p < 0.01


def test_tasks_are_drawn_apart_and_averaged() -> None:
    each, first = records(Kind.single_label, 30, seed=1)
    more, second = records(Kind.single_label, 10, seed=2)
    both = [record | {"task": "x"} for record in each] + [record | {"task": "y"} for record in more]
    found = values(measures_of(both, Kind.single_label), 40)
    assert found["accuracy/x"] == pytest.approx(first["accuracy"])
    assert found["accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
    strata = [np.arange(30), np.arange(30, 40)]
    wide = intervals(measures_of(both, Kind.single_label), 40, strata=strata)["accuracy/x"]
    alone = intervals(measures_of(each, Kind.single_label), 30)["accuracy"]
    assert (wide.low, wide.high) == pytest.approx((alone.low, alone.high), abs=0.05)
