"""Choosing among answers by their probability: scores of candidates, and the cross-entropy over those of a
question.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def candidate_scores(logprobs: Tensor, candidates: Tensor, num_candidates: int) -> Tensor:
    """[candidates] sum of the log-probabilities [units] of each candidate's tokens. `candidates`: [units] int64."""
    return logprobs.new_zeros(num_candidates).index_add(0, candidates, logprobs)


def choice_losses(scores: Tensor, questions: Tensor, right: Tensor) -> Tensor:
    """[questions] cross-entropy of the right candidate among those of its question.

    Args:
        scores: [candidates]
        questions: [candidates] int64, the question of each, in order
        right: [questions] int64, the candidate that is right
    """
    counts = torch.bincount(questions, minlength=len(right))
    firsts = counts.cumsum(0) - counts
    columns = torch.arange(len(scores), device=scores.device) - firsts[questions]
    table = scores.new_full((len(right), int(counts.max())), float("-inf"))
    return F.cross_entropy(table.index_put((questions, columns), scores), right - firsts, reduction="none")
