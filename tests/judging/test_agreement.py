"""How far a judge agrees with gold labels and with itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tunecli.judging.agreement import TIE, Judged, _measures, agreement, correlations, judged
from tunecli.judging.judge import Comparison
from tunecli.judging.questions import Compared
from tunecli.ops import bootstrap


def pairs(number: int, probability: float, *, bias: float = 0.0) -> list[Judged]:
    """Of a judge that says each time how sure it is of the better answer, and likes the first place by `bias`."""
    found = []
    for i in range(number):
        as_first, as_second = min(probability + bias, 1.0), max(probability - bias, 0.0)
        comparison = Comparison((as_first + as_second) / 2, as_first, as_second, consistency=0.5)
        found.append(judged(Compared("p", f"good {i}", f"bad {i}"), comparison, tie_margin=0.0))
    return found


def values(judgments: list[Judged]) -> dict[str, float]:
    return {name: each.value for name, each in agreement(judgments).items()}


def test_a_perfect_judge_agrees_in_everything():
    found = values(pairs(200, 0.9))
    assert found["accuracy"] == found["kappa"] == found["one_order_accuracy"] == 1
    assert found["position_bias"] == found["ties"] == 0 and found["first_place"] == 0.5


def test_a_judge_that_is_always_wrong_has_the_least_kappa():
    found = values(pairs(200, 0.1))
    assert found["accuracy"] == 0 and found["kappa"] < -0.9


def test_a_judge_that_names_the_first_place_is_biased_and_right_half_the_time():
    found = values(pairs(200, 0.52, bias=0.3))
    assert found["position_bias"] == found["first_place"] == 1
    assert found["one_order_accuracy"] == 0.5 and found["accuracy"] == 1


def test_half_of_the_pairs_count_as_swapped_so_that_kappa_means_something():
    golds = [each.gold for each in pairs(400, 0.9)]
    assert 140 < sum(golds) < 260
    swapped = Compared("p", "good 1", "bad 1").swapped
    other = judged(swapped, Comparison(0.9), tie_margin=0.0)
    assert other.gold == other.said  # whichever is the better one, a judge that says so is right


def test_ties_are_half_right():
    found = values([judged(Compared("p", str(i), "b"), Comparison(0.55), tie_margin=0.1) for i in range(20)])
    assert found["ties"] == 1 and found["accuracy"] == 0.5


def test_resampled_kappa_is_that_of_scikit_learn():
    generator = random.Random(0)
    judgments = [Judged(generator.randrange(2), generator.choice([0, 1, 1, TIE]), None, None) for _ in range(60)]
    weights = np.array([[generator.randrange(3) for _ in judgments] for _ in range(5)], float)
    found = _measures(judgments)(weights)["kappa"]
    gold, said = [each.gold for each in judgments], [each.said for each in judgments]
    expected = [cohen_kappa_score(gold, said, sample_weight=row) for row in weights]
    assert found == pytest.approx(expected)
    assert agreement(judgments)["kappa"].value == cohen_kappa_score(gold, said)


def test_intervals_hold_the_value_and_few_pairs_have_none():
    generator = random.Random(1)
    many = [Judged(generator.randrange(2), generator.randrange(2), None, 0.5) for _ in range(50)]
    assert all(each.low <= each.value <= each.high for each in agreement(many).values())
    assert agreement(many)["accuracy"].low < agreement(many)["accuracy"].high
    assert all(each.low == each.high for each in agreement(many[:9]).values())
    assert agreement([]) == {}


def test_correlations_are_those_of_scipy():
    from scipy.stats import pearsonr, spearmanr

    generator = np.random.default_rng(0)
    x = generator.normal(size=40)
    y = x + generator.normal(size=40)
    found = correlations(x, y)
    assert found["pearson"].value == pytest.approx(pearsonr(x, y).statistic)
    assert found["spearman"].value == pytest.approx(spearmanr(x, y).statistic)
    assert correlations([1, 1, 1], [1, 2, 3]) == {}
    assert isinstance(found["pearson"], bootstrap.Interval)
