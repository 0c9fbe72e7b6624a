"""Losses of reward models against direct, slow ones in float64, and against the formulas that others use."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tunecli.ops.reward_losses import preference_losses, reward_losses

GENERATOR = torch.Generator().manual_seed(0)
CHOSEN, REJECTED = torch.randn(2, 50, generator=GENERATOR, dtype=torch.float64) * 3
MARGINS = torch.rand(50, generator=GENERATOR, dtype=torch.float64) * 2
PROBABILITIES = torch.rand(50, generator=GENERATOR, dtype=torch.float64)


def slow(chosen: float, rejected: float, margin: float, probability: float, coefficient: float) -> float:
    won = 1 / (1 + math.exp(-(chosen - rejected - margin)))
    centre = coefficient * (chosen + rejected) ** 2
    return -probability * math.log(won) - (1 - probability) * math.log(1 - won) + centre


def of_pairs(coefficient: float, margins=MARGINS, probabilities=PROBABILITIES, chosen=CHOSEN, rejected=REJECTED):
    scores = torch.stack([chosen, rejected], 1).flatten()
    right, targets = 2 * torch.arange(len(chosen)), torch.full_like(chosen, math.nan)
    return reward_losses(scores, right, targets, margins, probabilities, center_coefficient=coefficient)


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_pairs_are_as_the_definition_has_them(coefficient: float):
    each = zip(CHOSEN.tolist(), REJECTED.tolist(), MARGINS.tolist(), PROBABILITIES.tolist(), strict=True)
    expected = torch.tensor([slow(*values, coefficient) for values in each], dtype=torch.float64)
    torch.testing.assert_close(of_pairs(coefficient), expected)


def test_certain_pairs_are_those_of_trl():
    """TRL's RewardTrainer: -logsigmoid(chosen - rejected - margin), plus coefficient * (chosen + rejected)^2."""
    certain = torch.ones_like(MARGINS)
    expected = -F.logsigmoid(CHOSEN - REJECTED - MARGINS)
    torch.testing.assert_close(of_pairs(0.0, probabilities=certain), expected)
    centred = expected.mean() + 0.01 * torch.mean((CHOSEN + REJECTED) ** 2)
    torch.testing.assert_close(of_pairs(0.01, probabilities=certain).mean(), centred)


def test_a_pair_that_is_swapped_has_the_other_probability():
    zeros = torch.zeros_like(MARGINS)
    there = of_pairs(0.1, margins=zeros)
    back = of_pairs(0.1, margins=zeros, probabilities=1 - PROBABILITIES, chosen=REJECTED, rejected=CHOSEN)
    torch.testing.assert_close(there, back)


def test_the_best_difference_is_the_log_odds_beyond_the_margin():
    differences = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    optimal = MARGINS + torch.logit(PROBABILITIES)
    (gradient,) = torch.autograd.grad(
        preference_losses(differences + optimal, MARGINS, PROBABILITIES).sum(), differences
    )
    assert gradient.abs().max() < 1e-12


def test_pairs_and_scored_texts_stand_side_by_side():
    scores = torch.tensor([1.0, -0.5, 2.0, 0.3, 0.1], requires_grad=True)
    right, targets = torch.tensor([0, 2, 3]), torch.tensor([math.nan, 1.5, math.nan])
    margins, probabilities = torch.tensor([0.5, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.5])
    losses = reward_losses(scores, right, targets, margins, probabilities, center_coefficient=0.0)
    expected = [-F.logsigmoid(torch.tensor(1.0)).item(), 0.25, slow(0.3, 0.1, 0.0, 0.5, 0.0)]
    torch.testing.assert_close(losses, torch.tensor(expected))
    losses.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad[2] == 1.0


def test_far_scores_are_no_overflow():
    far = torch.tensor([1e4, -1e4])
    losses = preference_losses(far, torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(losses, torch.tensor([0.0, 1e4]))
