"""Bootstrap intervals against the normal approximation and against resampling one by one."""

from __future__ import annotations

import numpy as np
import pytest

from tunecli.ops.bootstrap import gain, share

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
    assert gain(RIGHT, RIGHT) == gain(LATER, LATER) and gain(RIGHT, RIGHT).high == 0


def test_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="300 examples before and 2 after"):
        gain(RIGHT, [True, False])


def test_all_right_is_sure() -> None:
    found = share([True] * 10)
    assert (found.value, found.low, found.high) == (1, 1, 1)
