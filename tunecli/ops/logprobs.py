"""Log-probabilities of chosen tokens without a [tokens, vocabulary] tensor of the whole batch.

The output head and the softmax run over chunks of the trained positions. Two ways, the same numbers:

* `frozen_head_logprobs`: where the head is a plain frozen matrix, the gradient with respect to the hidden state of
  token t is `grad[t] * (W[target] - softmax(W h[t]) W)`, known up to the factor `grad[t]` in the forward already.
  It is computed there, chunk by chunk, so backward costs one multiplication and no second pass over the head
  (the idea of Liger's fused linear cross-entropy, Hsu et al., 2024, kept per token so that any loss can follow).
* `checkpointed_logprobs`: any other head; each chunk is computed again in backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunecli.ops.policy_losses import entropies

CHUNK = 1024


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """[tokens] fp32 log-probability of `targets` [tokens] under `logits` [tokens, vocabulary]."""
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def checkpointed_logprobs(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """[tokens] log-probability of `targets` given `hidden` [tokens, width], through any differentiable `head`."""

    def one_chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        return token_logprobs(head(hidden), targets)

    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([one_chunk(*piece) for piece in pieces])
    return torch.cat([checkpoint(one_chunk, *piece, use_reentrant=False) for piece in pieces])


def frozen_head_logprobs(
    weight: Tensor, bias: Tensor | None, hidden: Tensor, targets: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """[tokens] log-probability of `targets` under a frozen linear head.

    Args:
        weight: [vocabulary, width], needs no gradient; `bias` [vocabulary] or None.
        hidden: [tokens, width]; its gradient is computed in this forward if it needs one.
    """
    return _FrozenHead.apply(hidden, weight, bias, targets, chunk, False)[0]


def checkpointed_statistics(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, temperature: float, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """[tokens] log-probability of `targets` [tokens], and [tokens] entropy of what they are drawn from, at a
    temperature; both with gradients."""

    def one_chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden).float() / temperature
        return token_logprobs(logits, targets), entropies(logits)

    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    if torch.is_grad_enabled():
        found = [checkpoint(one_chunk, *piece, use_reentrant=False) for piece in pieces]
    else:
        found = [one_chunk(*piece) for piece in pieces]
    return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])


def frozen_head_statistics(
    weight: Tensor, bias: Tensor | None, hidden: Tensor, targets: Tensor, *, temperature: float, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The same of a frozen linear head, see `frozen_head_logprobs`; the entropies without gradients."""
    scaled_bias = None if bias is None else bias / temperature
    return _FrozenHead.apply(hidden / temperature, weight, scaled_bias, targets, chunk, True)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        with_entropies: bool,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and, if wanted, entropies."""
        needs_gradient = ctx.needs_input_grad[0]
        logprobs, spreads, gradients = [], [], []
        for part, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = F.linear(part.to(weight.dtype), weight, bias).float()
            normalizer = logits.logsumexp(-1, keepdim=True)
            rows = torch.arange(len(target), device=target.device)
            logprobs.append(logits[rows, target] - normalizer[:, 0])
            if with_entropies:
                spreads.append(entropies(logits))
            if needs_gradient:
                towards = logits.sub_(normalizer).exp_().neg_()  # -softmax, then + one-hot
                towards[rows, target] += 1.0
                gradients.append(towards.to(weight.dtype) @ weight)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients) if gradients else hidden)
        ctx.hidden_dtype = hidden.dtype
        nothing = hidden.new_zeros(0, dtype=torch.float32)
        spread = torch.cat(spreads) if spreads else nothing
        ctx.mark_non_differentiable(spread)
        return torch.cat(logprobs) if logprobs else nothing, spread

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (towards,) = ctx.saved_tensors
        return (towards * grad[:, None].to(towards.dtype)).to(ctx.hidden_dtype), None, None, None, None, None
