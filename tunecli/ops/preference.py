"""Losses that learn from preferences, one value for each pair of answers, or for each answer.

A pair is a chosen and a rejected answer y to one prompt x. Its `ratios` are
h = log p(chosen|x) / ref(chosen|x) - log p(rejected|x) / ref(rejected|x), sums over tokens unless a loss says means.
`probabilities` are those of the chosen answer being the better one; below 1 a loss is weighed with that of the pair
the other way round (h becomes -h), which for the losses that are log-likelihoods is the cross-entropy of soft labels.

| loss | of one pair | paper |
|---|---|---|
| dpo | -log sigmoid(beta h - margin) | Rafailov et al., 2023; the margin: ODPO, Amini et al., 2024 |
| cdpo | (1 - e) dpo(h) + e dpo(-h) | Mitchell, 2023: labels flipped with probability e |
| robust | ((1 - e) dpo(h) - e dpo(-h)) / (1 - 2 e) | Chowdhury et al., 2024: unbiased under such flips |
| ipo | (h - 1 / (2 beta))^2, h of means over tokens | Azar et al., 2023 |
| hinge | max(0, 1 - beta h) | SLiC, Zhao et al., 2023, with ratios to the reference as Liu et al., 2023 |
| exo | KL(q, (1 - e, e)), q = sigmoid(beta h) | Ji et al., 2024, equation 16 |
| simpo | -log sigmoid(beta h - gamma), h of means of log p, no reference | Meng et al., 2024 |
| orpo | -log p(chosen) - beta log sigmoid(log odds ratio), means over tokens | Hong et al., 2024 |
| kto | weight (1 - sigmoid(+-(beta ratio - beta KL))) of each answer | Ethayarajh et al., 2024 |

Departs from the papers: ODPO's offset is in proportion to the margin, where the paper mostly takes its logarithm.
IPO's h is of means over tokens, not sums, as its authors told TRL's, so that answers of any length have the same
target. ORPO's first term is over the chosen answer alone, without the prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LOG = -1e-7
"""Log-probabilities are kept below this where 1 - p is needed, which would be 0 at p = 1."""


def either_way(loss: Callable[[Tensor], Tensor], ratios: Tensor, probabilities: Tensor) -> Tensor:
    """[pairs] expected `loss` where each pair is the right way round with its probability."""
    if bool((probabilities == 1).all()):
        return loss(ratios)
    return probabilities * loss(ratios) + (1 - probabilities) * loss(-ratios)


def smoothed(probabilities: Tensor, label_smoothing: float) -> Tensor:
    """Probabilities where labels are flipped with probability `label_smoothing`."""
    return probabilities * (1 - label_smoothing) + (1 - probabilities) * label_smoothing


def dpo(ratios: Tensor, probabilities: Tensor, *, beta: float, margins: Tensor | float = 0.0) -> Tensor:
    """`margins`: by how much beta h is to be greater than 0; of a pair the other way round, less."""
    return either_way(lambda logits: -F.logsigmoid(logits), beta * ratios - margins, probabilities)


def cdpo(ratios: Tensor, probabilities: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    return dpo(ratios, smoothed(probabilities, label_smoothing), beta=beta)


def robust(ratios: Tensor, probabilities: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """`label_smoothing`: below 0.5."""

    def loss(logits: Tensor) -> Tensor:
        right, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
        return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)

    return either_way(loss, beta * ratios, probabilities)


def ipo(ratios: Tensor, probabilities: Tensor, *, beta: float) -> Tensor:
    """`ratios`: of means over tokens."""
    return either_way(lambda h: (h - 1 / (2 * beta)).square(), ratios, probabilities)


def hinge(ratios: Tensor, probabilities: Tensor, *, beta: float) -> Tensor:
    return either_way(lambda logits: F.relu(1 - logits), beta * ratios, probabilities)


def exo(ratios: Tensor, probabilities: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """`label_smoothing`: above 0, as the divergence from a certain label is infinite. Soft labels are the target."""
    target = smoothed(probabilities, label_smoothing)
    logits = beta * ratios
    chosen, rejected = F.logsigmoid(logits), F.logsigmoid(-logits)
    return chosen.exp() * (chosen - target.log()) + rejected.exp() * (rejected - torch.log1p(-target))


def simpo(ratios: Tensor, probabilities: Tensor, *, beta: float, gamma: float) -> Tensor:
    """`ratios`: mean log-probability of the chosen answer's tokens less that of the rejected one's."""
    return either_way(lambda logits: -F.logsigmoid(logits - gamma), beta * ratios, probabilities)


def orpo(chosen: Tensor, rejected: Tensor, probabilities: Tensor, *, beta: float) -> Tensor:
    """`chosen`, `rejected`: [pairs] mean log-probabilities of their tokens; `beta`: the paper's lambda."""
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    likelihood = probabilities * chosen + (1 - probabilities) * rejected
    return beta * either_way(lambda odds: -F.logsigmoid(odds), log_odds, probabilities) - likelihood


def _log_odds(logprobs: Tensor) -> Tensor:
    """log p / (1 - p) without loss of digits at either end (Mächler, 2012)."""
    logprobs = logprobs.clamp(max=MOST_LOG)
    near_1, far = torch.log(-torch.expm1(logprobs)), torch.log1p(-torch.exp(logprobs.clamp(max=-0.5)))
    return logprobs - torch.where(logprobs > -0.6931471805599453, near_1, far)


def kto(
    ratios: Tensor,
    desirable: Tensor,
    kl: Tensor | float,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """
    Args:
        ratios: [answers] log p(y|x) / ref(y|x).
        desirable: [answers] 1 or 0, or the probability that it is.
        kl: of the policy from the reference, see `kto_kl`.

    Returns:
        [answers]
    """
    good = desirable_weight * torch.sigmoid(-beta * (ratios - kl))
    bad = undesirable_weight * torch.sigmoid(-beta * (kl - ratios))
    return desirable * good + (1 - desirable) * bad


def kto_kl(total: Tensor | float, count: Tensor | float) -> float:
    """The paper's reference point: the mean log ratio of answers to other prompts than those that they are put
    behind, at least 0. `total` is its sum over the `count` answers of the global batch, without a gradient."""
    return max(0.0, float(total) / max(float(count), 1.0))
