"""Losses of classifiers and taggers, one value for each text or word, before weighting.

Where a model learns several tasks its logits are those of the labels of all tasks, and each row competes among the
labels of its own task only: the same as a head for each task on one state.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def single_label(logits: Tensor, targets: Tensor, own: Tensor) -> Tensor:
    """[units] cross-entropy.

    Args:
        logits: [units, labels]
        targets: [units] int64
        own: [units, labels] bool: labels of the unit's task
    """
    return F.cross_entropy(logits.masked_fill(~own, float("-inf")), targets, reduction="none")


def multi_label(logits: Tensor, targets: Tensor, own: Tensor) -> Tensor:
    """[units] binary cross-entropy, the mean over the labels of its task. `targets`: [units, labels], 0 or 1."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.masked_fill(~own, 0.0).sum(1) / own.sum(1)


def regression(logits: Tensor, targets: Tensor, own: Tensor) -> Tensor:
    """[units] squared error. `targets`: [units] float32; `logits`: one for each task."""
    return (logits[own] - targets).square()
