"""How much better each token was than expected: generalised advantage estimation (Schulman et al., 2015,
arXiv:1506.02438), leave-one-out baselines (RLOO: Kool et al., 2019; Ahmadian et al., 2024, arXiv:2402.14740) and
group normalisation (GRPO: Shao et al., 2024, arXiv:2402.03300); and whitening over everything that counts.

Episodes are padded on the right: `mask` is True from the first token of each up to its last.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-8
"""Added to a variance before it is divided by."""
GROUP_TINY = 1e-4
"""Added to the deviation of a group of scores, which is 0 where all answers are worth the same."""


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """[episodes, width] advantages, 0 where there is no token.

    Args:
        rewards: [episodes, width] for each token, after it.
        values: [episodes, width] expected return before each token; behind the last one it is 0.
        mask: [episodes, width] bool.
    """
    advantages = torch.zeros_like(rewards)
    following = next_value = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask[:, t], delta + gamma * lam * following, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = following
    return advantages


def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """[episodes, width] sum of the rewards from each token on, each `gamma` times less than the one before it."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


def masked_sums(values: Tensor, mask: Tensor) -> Tensor:
    """[3] float64: number, sum and sum of squares of the values that count; of several processes they add up."""
    counted = values.double()[mask]
    return torch.stack([counted.new_tensor(float(len(counted))), counted.sum(), counted.square().sum()])


def moments(sums: Tensor) -> tuple[float, float]:
    """Mean and (biased) variance, from `masked_sums`."""
    number, total, squares = sums.tolist()
    mean = total / max(number, 1.0)
    return mean, max(squares / max(number, 1.0) - mean * mean, 0.0)


def whitened(values: Tensor, mask: Tensor, sums: Tensor, *, keep_mean: bool = False) -> Tensor:
    """`values` with mean 0 (or that of before) and variance 1 over all that `sums` counts; 0 outside of `mask`."""
    mean, variance = moments(sums)
    scaled = (values - mean) * (variance + TINY) ** -0.5
    return torch.where(mask, scaled + mean if keep_mean else scaled, 0.0)


def rloo(scores: Tensor, num_samples: int) -> Tensor:
    """[episodes] each score less the mean of the others of its prompt, whose `num_samples` answers stand together."""
    groups = scores.view(-1, num_samples)
    others = (groups.sum(1, keepdim=True) - groups) / (num_samples - 1)
    return (groups - others).flatten()


def grpo(scores: Tensor, num_samples: int) -> Tensor:
    """[episodes] each score less the mean of its prompt's answers, in (unbiased) deviations of these."""
    groups = scores.view(-1, num_samples)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + GROUP_TINY)).flatten()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 less the share of the variance of the returns that the values leave over; 0 where all returns are equal."""
    _, variance = moments(masked_sums(returns, mask))
    _, left = moments(masked_sums(returns - values, mask))
    return 1.0 - left / variance if variance > 0 else 0.0
