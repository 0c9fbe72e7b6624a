"""Intervals of shares against the normal approximation, resampling one by one, and published values."""

from __future__ import annotations

import numpy as np
import pytest

from tunecli.ops.proportions import gain, share

RIGHT = (np.random.default_rng(1).random(300) < 0.74).tolist()
LATER = (np.random.default_rng(2).random(300) < 0.9).tolist()


def test_a_share_is_as_sure_as_the_binomial_says() -> None:
    found = share(RIGHT)
    p = sum(RIGHT) / 300
    half = 1.96 * (p * (1 - p) / 300) ** 0.5
    assert found.value == p
    assert found.low == pytest.approx(p - half, abs=0.006)
    assert found.high == pytest.approx(p + half, abs=0.006)


def test_a_gain_is_paired() -> None:
    rng = np.random.default_rng(3)
    differences = np.subtract(LATER, RIGHT, dtype=float)
    resampled = [differences[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    found = gain(RIGHT, LATER)
    assert found.value == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.008)
    assert found.p < 0.001


def test_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="300 examples before and 2 after"):
        gain(RIGHT, [True, False])


@pytest.mark.parametrize(
    ("right", "of", "low", "high"), [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_shares_are_those_of_newcombe(right: int, of: int, low: float, high: float) -> None:
    """Newcombe (1998), table I, method 3."""
    found = share([True] * right + [False] * (of - right))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("number", [1, 2, 16])
def test_nothing_and_everything_is_never_certain(number: int) -> None:
    none, all_of_them = share([False] * number), share([True] * number)
    assert none.value == none.low == 0 and all_of_them.value == all_of_them.high == 1
    assert none.high == pytest.approx(1 - all_of_them.low) and none.high > 1 / (number + 1)
    same, won = gain([True] * number, [True] * number), gain([False] * number, [True] * number)
    assert same.low < same.value == 0 < same.high and same.p == 1
    assert 0 < same.high == pytest.approx(-same.low)
    assert won.low < won.value == won.high == 1 and won.p == pytest.approx(min(1, 2 * 0.5**number))
