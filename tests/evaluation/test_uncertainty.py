"""No interval claims what so few examples, or such equal ones, cannot tell."""

from __future__ import annotations

import pytest

from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.uncertainty import LEAST, Metric, differences_of, mcnemar, metrics_of
from tunecli.ops.proportions import share


def answers(right: list[bool], **more: object) -> list[dict]:
    return [
        {"expected": "a", "predicted": "a" if each else "b", "probability": 0.9, "loss": 0.1 * i, "units": 1.0} | more
        for i, each in enumerate(right)
    ]


@pytest.mark.parametrize("right", [[True] * 20, [False] * 20, [True, False] * 10, [True]])
def test_shares_have_wilsons_interval(right: list[bool]) -> None:
    found, sure = metrics_of(answers(right), Kind.single_label)["accuracy"], share(right)
    assert found == Metric(sure.value, sure.low, sure.high) and sure.high - sure.low > 0.1


def test_a_metric_that_cannot_vary_has_no_interval() -> None:
    assert metrics_of(answers([True] * 20), Kind.single_label)["f1_macro"] == Metric(1.0)
    assert metrics_of(answers([True] * 10 + [False] * 10), Kind.single_label)["f1_macro"].low is not None


@pytest.mark.parametrize("number", [1, 2, LEAST - 1, LEAST])
def test_few_examples_are_not_resampled(number: int) -> None:
    found = metrics_of(answers([True, False] * LEAST)[:number], Kind.single_label)
    assert (found["loss"].low is None) == (number < LEAST)
    before = answers([True] * number)
    after = [each | {"loss": 1.0 + i**2} for i, each in enumerate(answers([False] * number))]
    different = differences_of(before, after, Kind.single_label)
    assert (different["loss"].low is None) == (different["loss"].p is None) == (number < LEAST)
    assert different["accuracy"].low == -1 < different["accuracy"].high


def test_only_what_was_judged_counts() -> None:
    judged = [each | {"exact_match": False, "rouge1": 0.1 * i} for i, each in enumerate(answers([False] * 3))]
    found = metrics_of(judged + answers([False] * 30), Kind.text)
    assert found["exact_match"] == Metric(0.0, 0.0, share([False] * 3).high)
    assert found["rouge1"].low is None and found["loss"].low is not None


def test_each_task_has_its_share() -> None:
    records = answers([True] * 12, task="x") + answers([False] * 4, task="y")
    found = metrics_of(records, Kind.single_label)
    assert found["accuracy/y"].high == share([False] * 4).high and found["accuracy/x"].low == share([True] * 12).low
    assert found["accuracy"] == Metric(0.5)  # the mean of both, in all resamples
    assert found["f1_macro/y"].low is None


def test_a_difference_and_mcnemar_say_the_same() -> None:
    before, after = answers([False] * 8 + [True] * 12), answers([True] * 20)
    found = differences_of(before, after, Kind.single_label)["accuracy"]
    test = mcnemar(before, after, Kind.single_label)
    assert test is not None and (test.only_first, test.only_this, test.p) == (0, 8, found.p)
    assert found.p == pytest.approx(2 * 0.5**8) and found.value == 0.4 and 0 < found.low < 0.4 < found.high
    assert mcnemar(before, after, Kind.regression) is None
