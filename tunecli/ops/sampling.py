"""Drawing tokens with random numbers that are given, so that it does not matter what else is drawn beside them."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(logits: Tensor, numbers: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """[rows] int64: a token for each row, by inverting its distribution function.

    Args:
        logits: [rows, vocabulary]; -inf for what is out of the question.
        numbers: [rows] float64 in [0, 1).
        temperature: above 0. 0 takes the most likely token.
        top_k: only so many of the most likely tokens; 0: all.
        top_p: only the fewest most likely tokens that have this much probability together (Holtzman et al., 2020).
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        logits = _nucleus(logits, top_p)
    reached = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    wanted = numbers[:, None].to(reached) * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1, dtype=torch.float64) - probabilities
    outside = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)
