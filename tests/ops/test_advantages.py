"""Advantages, KL estimates and losses = the definitions, written down directly in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.testing import assert_close

from tunecli.ops.advantages import (
    discounted_returns,
    explained_variance,
    gae,
    grpo,
    masked_sums,
    moments,
    rloo,
    whitened,
)
from tunecli.ops.kl import ESTIMATORS, adapted
from tunecli.ops.policy_losses import approximate_kl, clipped_policy_loss, clipped_value_loss, entropies

LENGTHS = [5, 1, 3, 7]


def episodes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    rewards, values = torch.randn(2, *mask.shape, generator=generator, dtype=torch.float64)
    return rewards, values, mask


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_weighted_sum_of_the_errors(gamma: float, lam: float) -> None:
    rewards, values, mask = episodes()
    found = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(LENGTHS):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(max(LENGTHS)):
            errors = [r[i] + gamma * v[i + 1] - v[i] for i in range(t, length)]
            expected = sum((gamma * lam) ** i * error for i, error in enumerate(errors))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-12)


def test_returns_are_sums_of_what_follows_and_gae_with_lam_1_is_returns_less_values() -> None:
    rewards, values, mask = episodes()
    found = discounted_returns(rewards, mask, 0.9)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected = sum(0.9 ** (i - t) * rewards[row, i].item() for i in range(t, length))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-12)
    assert_close(gae(rewards, values, mask, 0.9, 1.0), torch.where(mask, found - values, 0.0))


def test_padding_does_not_matter() -> None:
    rewards, values, mask = episodes()
    wider = [torch.nn.functional.pad(each, (0, 4), value=99.0) for each in (rewards, values)]
    found = gae(*wider, torch.nn.functional.pad(mask, (0, 4)), 0.9, 0.95)
    assert_close(found[:, :-4], gae(rewards, values, mask, 0.9, 0.95))
    assert (found[:, -4:] == 0).all()


@pytest.mark.parametrize("keep_mean", [False, True])
def test_whitening_over_two_parts_is_whitening_of_the_whole(keep_mean: bool) -> None:
    values, _, mask = episodes()
    values = values * 3 + 2
    sums = masked_sums(values[:2], mask[:2]) + masked_sums(values[2:], mask[2:])
    parts = [whitened(values[half], mask[half], sums, keep_mean=keep_mean) for half in (slice(2), slice(2, None))]
    there = values[mask]
    expected = (there - there.mean()) / there.std(correction=0) + (there.mean() if keep_mean else 0)
    assert_close(torch.cat(parts)[mask], expected, atol=1e-6, rtol=1e-6)
    assert (torch.cat(parts)[~mask] == 0).all()
    assert moments(sums) == pytest.approx((there.mean().item(), there.var(correction=0).item()))


def test_rloo_and_grpo_compare_with_the_answers_to_the_same_prompt() -> None:
    draw = random.Random(0)
    scores = [draw.gauss(0, 2) for _ in range(12)]
    left_out, normalised = rloo(torch.tensor(scores).double(), 4), grpo(torch.tensor(scores).double(), 4)
    for i, score in enumerate(scores):
        group = scores[i // 4 * 4 : i // 4 * 4 + 4]
        others = [other for j, other in enumerate(group) if j != i % 4]
        mean = sum(group) / 4
        deviation = math.sqrt(sum((other - mean) ** 2 for other in group) / 3)
        assert left_out[i].item() == pytest.approx(score - sum(others) / 3, abs=1e-6)
        assert normalised[i].item() == pytest.approx((score - mean) / (deviation + 1e-4), abs=1e-6)
    assert (grpo(torch.ones(8), 4) == 0).all() and (rloo(torch.ones(8), 4) == 0).all()


def test_explained_variance() -> None:
    _, returns, mask = episodes(1)
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(returns, 7.0), returns, mask) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones_like(returns), mask) == 0.0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_kl_estimates_are_their_definitions(name: str) -> None:
    draw = random.Random(1)
    pairs = [(draw.gauss(-2, 1), draw.gauss(-2, 1)) for _ in range(50)]
    new, reference = torch.tensor(pairs).double().T
    log_ratio = [r - p for p, r in pairs]
    expected = {
        "k1": [-x for x in log_ratio],
        "k2": [x * x / 2 for x in log_ratio],
        "k3": [math.exp(x) - 1 - x for x in log_ratio],
    }
    assert_close(ESTIMATORS[name](new, reference), torch.tensor(expected[name]).double(), atol=1e-6, rtol=1e-6)


def test_k1_and_k3_are_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(2, 6, generator=generator, dtype=torch.float64)).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    for name in ("k1", "k3"):
        assert_close((policy.exp() * ESTIMATORS[name](policy, reference)).sum(), exact)


def test_the_controller_moves_towards_its_target_and_not_too_fast() -> None:
    assert adapted(0.1, 6.0, target=6.0, horizon=1000, episodes=50) == 0.1
    assert adapted(0.1, 6.6, target=6.0, horizon=1000, episodes=50) == pytest.approx(0.1 * (1 + 0.1 * 0.05))
    assert adapted(0.1, 600.0, target=6.0, horizon=1000, episodes=50) == pytest.approx(0.1 * 1.01)
    assert adapted(0.1, 0.0, target=6.0, horizon=1000, episodes=50) == pytest.approx(0.1 * 0.99)


def test_the_clipped_losses_are_their_definitions() -> None:
    draw = random.Random(2)
    rows = [[draw.gauss(0, 0.5) for _ in range(3)] for _ in range(60)]
    new, old, third = torch.tensor(rows).double().T
    losses, ratios, clipped = clipped_policy_loss(new, old, third, 0.2)
    values, value_clipped = clipped_value_loss(new, old, third, 0.2)
    for i, (p, q, x) in enumerate(rows):
        ratio = math.exp(p - q)
        worse = min(ratio * x, min(max(ratio, 0.8), 1.2) * x)
        assert losses[i].item() == pytest.approx(-worse, abs=1e-6)
        assert ratios[i].item() == pytest.approx(ratio, abs=1e-6)
        assert bool(clipped[i]) == (worse < ratio * x)
        near = q + min(max(p - q, -0.2), 0.2)
        assert values[i].item() == pytest.approx(max((p - x) ** 2, (near - x) ** 2) / 2, abs=1e-6)
        assert bool(value_clipped[i]) == ((near - x) ** 2 > (p - x) ** 2)
    assert 0 < clipped.sum() < 60 and 0 < value_clipped.sum() < 60


def test_approximate_kl_and_entropy() -> None:
    new, old = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-1.5, -2.0]).double()
    assert_close(approximate_kl(new, old), torch.tensor([math.exp(0.5) - 1.5, 0.0]).double())
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    assert_close(entropies(logits), torch.tensor([math.log(4), 0.0]))
