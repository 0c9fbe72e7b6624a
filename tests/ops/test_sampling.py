"""Drawn tokens come as often as they are likely, and only from those that may come."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tunecli.ops.sampling import draw

LOGITS = torch.tensor([[2.0, 0.5, 1.0, -1.0, 1.5]])
EVENLY = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def shares(**limits) -> torch.Tensor:
    drawn = draw(LOGITS.expand(len(EVENLY), -1), EVENLY, **limits)
    return torch.bincount(drawn, minlength=5) / len(EVENLY)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS[0] / temperature).softmax(-1)
        assert_close(shares(temperature=temperature), expected, atol=2e-4, rtol=0)


def test_top_k_and_top_p_leave_the_most_likely() -> None:
    probabilities = LOGITS[0].softmax(-1)
    cases = [({"top_k": 2}, [0, 4]), ({"top_p": 0.5}, [0, 4]), ({"top_p": 0.01}, [0]), ({"top_k": 9}, None)]
    for limits, left in cases:
        expected = probabilities.clone()
        if left is not None:
            expected[[i for i in range(5) if i not in left]] = 0
        assert_close(shares(temperature=1.0, **limits), expected / expected.sum(), atol=2e-4, rtol=0)


def test_temperature_0_is_the_most_likely_and_minus_infinity_never_comes() -> None:
    assert draw(LOGITS, torch.tensor([0.99]), temperature=0).tolist() == [0]
    forbidden = LOGITS.clone()
    forbidden[0, [0, 4]] = -torch.inf
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(forbidden.expand(2, -1), edges, temperature=1.0).tolist() == [1, 3]
