"""The losses of PPO (Schulman et al., 2017, arXiv:1707.06347), per token and unreduced."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate: what is gained by going further than `clip_range` from the old policy does not count.

    Returns:
        [tokens] losses; [tokens] ratios of the new probability to the old one; [tokens] bool: whether it was clipped.
    """
    ratios = (logprobs - old_logprobs).exp()
    free = -advantages * ratios
    clipped = -advantages * ratios.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(free, clipped), ratios, clipped > free


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error, of the value or of one at most `clip_range` from the old one: whichever is larger.

    Returns:
        [tokens] losses; [tokens] bool: whether the clipped one was.
    """
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    free, clipped = (values - returns).square(), (near - returns).square()
    return torch.maximum(free, clipped) / 2, clipped > free


def approximate_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """[tokens] how far the new policy is from the old one: (ratio - 1) - log ratio, never negative."""
    log_ratio = logprobs - old_logprobs
    return log_ratio.expm1() - log_ratio


def entropies(logits: Tensor) -> Tensor:
    """[tokens] of the distributions that `logits` [tokens, vocabulary] stand for, in nats."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
