"""How far a policy is from its reference: estimates of KL(policy || reference) from tokens that the policy drew
(Schulman, 2020, "Approximating KL divergence"), and the controller that steers it (Ziegler et al., 2019,
arXiv:1909.08593, section 2.2).

With r = reference / policy of a token: k1 = -log r is unbiased and may be negative; k2 = (log r)^2 / 2 is biased and
varies less; k3 = r - 1 - log r is unbiased and never negative.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

LARGEST_ERROR = 0.2
"""By which the controller lets itself be moved at most, as a share of its target."""
LARGEST_LOG_RATIO = 20.0
"""k3's exponent is cut off there: a token that the policy has all but unlearnt would else be infinitely far."""


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """[tokens], as the arguments"""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """[tokens], as the arguments"""
    return (logprobs - reference).square() / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """[tokens], as the arguments"""
    log_ratio = (reference - logprobs).clamp(max=LARGEST_LOG_RATIO)
    return log_ratio.expm1() - log_ratio


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def adapted(coef: float, kl: float, *, target: float, horizon: float, episodes: int) -> float:
    """The coefficient after `episodes` whose KL was `kl`: larger where that is above the target."""
    error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return coef * (1 + error * episodes / horizon)
