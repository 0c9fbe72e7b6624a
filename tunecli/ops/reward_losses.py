"""Losses of reward models, one value for each comparison or scored text, before weighting.

Of two answers to one prompt the probability that the first is preferred is sigmoid(difference of their scores)
(Bradley and Terry, 1952; Ouyang et al., 2022, equation 1). With a margin m, by how much the first is better, the
difference has to be that much larger: sigmoid(difference - m) (Touvron et al., 2023, Llama 2, arXiv:2307.09288,
equation 2). Such scores are known up to a constant only; the centring term draws them to zero (Eisenstein et al.,
2023, arXiv:2312.09244, section 3.3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def preference_losses(differences: Tensor, margins: Tensor, probabilities: Tensor) -> Tensor:
    """[pairs] cross-entropy of which is preferred.

    Args:
        differences: [pairs] score of the chosen text minus that of the rejected one.
        margins: [pairs] how much larger the difference has to be, 0 or more.
        probabilities: [pairs] that the chosen text is the better one: 1 where that is certain.
    """
    logits = differences - margins
    return -probabilities * F.logsigmoid(logits) - (1 - probabilities) * F.logsigmoid(-logits)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[pairs] the square of the sum of both scores [pairs]."""
    return (chosen + rejected).square()


def score_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """[texts] squared error of `scores` [texts]."""
    return (scores - targets).square()


def reward_losses(
    scores: Tensor,
    right: Tensor,
    targets: Tensor,
    margins: Tensor,
    probabilities: Tensor,
    *,
    center_coefficient: float,
) -> Tensor:
    """[questions] the loss of each pair, and of each text that is scored.

    Args:
        scores: [candidates] what the model gives each text; those of a question together.
        right: [questions] int64, the chosen text of a pair, which the rejected one follows; or the only text.
        targets: [questions] the score that the only text should have; nan for a pair.
        margins: [questions]; `probabilities`: [questions].
        center_coefficient: how much `centring` counts.
    """
    pairs = targets.isnan()
    chosen, rejected = scores[right], scores[right + pairs.long()]
    compared = preference_losses(chosen - rejected, margins, probabilities)
    if center_coefficient:
        compared = compared + center_coefficient * centring(chosen, rejected)
    return torch.where(pairs, compared, score_losses(chosen, targets.nan_to_num()))
