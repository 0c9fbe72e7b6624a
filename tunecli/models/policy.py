"""`Policy`: what DDP and FSDP wrap, and the only call that training makes.

A stage that called submodules itself would get silently unreduced gradients under DDP. The forward runs the
backbone on the micro-batch, selects the positions that are trained, and only these go through the head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.engine.batch import Batch
from tunecli.models import attention
from tunecli.ops.logprobs import (
    CHUNK,
    checkpointed_logprobs,
    checkpointed_statistics,
    frozen_head_logprobs,
    frozen_head_statistics,
    token_logprobs,
)
from tunecli.ops.policy_losses import entropies

ONEDNN_MULTIPLE = 32
"""What bf16 rows are filled up to on a CPU: oneDNN compiles a kernel for every new shape of a product, which costs
more than a few tokens too many."""


class Head(Enum):
    """How log-probabilities are made from hidden states; `self_test` finds the first that is exact."""

    chunked = "chunked"
    """The output embedding in chunks is the whole head."""
    logits = "logits"
    """The model does more (soft caps, logit scales): its own forward with `logits_to_keep`."""


@dataclass(frozen=True, slots=True)
class Detail:
    """What reinforcement learning wants to know of each trained token."""

    temperature: float = 1.0
    """of the distributions that the tokens are drawn from"""
    entropy_gradient: bool = False
    """whether entropies have gradients, which costs a second pass over a frozen head"""
    values: bool = True
    """whether values are asked for, where there is something that gives them"""


class Details(NamedTuple):
    logprobs: Tensor
    """[trained] fp32"""
    entropies: Tensor
    """[trained] fp32, in nats"""
    values: Tensor | None
    """[trained] fp32: what is expected before each token is drawn; None: nobody says, or nobody asked"""


class Policy(nn.Module):
    """A causal language model that answers with the log-probabilities of the trained tokens."""

    def __init__(self, lm: PreTrainedModel, *, packed: bool = True, head: Head = Head.chunked) -> None:
        super().__init__()
        self.lm = lm
        self.packed = packed
        self.head = head
        self.multiple = 1
        """Packed rows are filled up to a multiple of this many tokens."""
        self.trees = False
        """Sequences of packed rows may go on from others; `shared_beginning` finds out whether that is exact."""
        self.value_head: nn.Linear | None = None
        """[hidden] -> [1], fp32; see `add_value_head`"""
        self.value_model: nn.Module | None = None
        """A `ValueModel` that reads the same batches, in place of a value head; in here for DDP to see it. It too is
        trained and saved with checkpoints, and is no part of what is saved as the result."""

    def forward(self, batch: Batch, detail: Detail | None = None) -> Tensor | Details:
        """[trained] fp32 log-probabilities of `batch.targets`; with `detail` entropies and values too."""
        trained = len(batch.kept)
        batch = filled_up(batch, self.multiple)
        if detail is not None:
            return Details(*(each if each is None else each[:trained] for each in self._details(batch, detail)))
        if self.head is Head.logits:
            return self._logprobs_of_logits(batch)[:trained]
        hidden = self.lm.get_decoder()(**model_inputs(batch)).last_hidden_state
        states = hidden.flatten(0, 1)[batch.kept]
        return head_logprobs(self.lm.get_output_embeddings(), states, batch.targets)[:trained]

    def _details(self, batch: Batch, detail: Detail) -> Details:
        if self.head is Head.chunked:
            hidden = self.lm.get_decoder()(**model_inputs(batch)).last_hidden_state.flatten(0, 1)[batch.kept]
            head = self.lm.get_output_embeddings()
            return Details(*head_statistics(head, hidden, batch.targets, detail), self._values(batch, hidden, detail))
        width = batch.input_ids.shape[1]
        columns, column_index = torch.unique(batch.kept % width, return_inverse=True)
        found = self.lm(**model_inputs(batch), logits_to_keep=columns, output_hidden_states=True)
        logits = found.logits[batch.kept // width, column_index]
        hidden = found.hidden_states[-1].flatten(0, 1)[batch.kept]
        return Details(*statistics(logits, batch.targets, detail), self._values(batch, hidden, detail))

    def _values(self, batch: Batch, hidden: Tensor, detail: Detail) -> Tensor | None:
        """[trained] fp32, given the policy's own states `hidden` [trained, width]"""
        if not detail.values:
            return None
        if self.value_model is not None:
            return self.value_model(batch)
        return None if self.value_head is None else values_of(self.value_head, hidden)

    def _logprobs_of_logits(self, batch: Batch) -> Tensor:
        """Logits of the columns in which some row has a trained token, then those of the trained tokens."""
        width = batch.input_ids.shape[1]
        columns, column_index = torch.unique(batch.kept % width, return_inverse=True)
        logits = self.lm(**model_inputs(batch), logits_to_keep=columns).logits
        pieces = zip(
            (batch.kept // width).split(CHUNK), column_index.split(CHUNK), batch.targets.split(CHUNK), strict=True
        )
        return torch.cat([token_logprobs(logits[rows, cols], target) for rows, cols, target in pieces])


def head_logprobs(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """[tokens] fp32 log-probabilities of `targets` given `hidden` [tokens, width], in chunks."""
    if _plain_and_frozen(head):
        return frozen_head_logprobs(head.weight, head.bias, hidden, targets)
    return checkpointed_logprobs(head, hidden, targets)


def head_statistics(head: nn.Module, hidden: Tensor, targets: Tensor, detail: Detail) -> tuple[Tensor, Tensor]:
    """[tokens] log-probabilities of `targets` and [tokens] entropies, given `hidden` [tokens, width], in chunks."""
    if _plain_and_frozen(head) and not detail.entropy_gradient:
        return frozen_head_statistics(head.weight, head.bias, hidden, targets, temperature=detail.temperature)
    return checkpointed_statistics(head, hidden, targets, temperature=detail.temperature)


def statistics(logits: Tensor, targets: Tensor, detail: Detail) -> tuple[Tensor, Tensor]:
    """The same from `logits` [tokens, vocabulary]."""
    logits = logits.float() / detail.temperature
    return token_logprobs(logits, targets), entropies(logits)


def values_of(head: nn.Module, hidden: Tensor) -> Tensor:
    """[tokens] fp32, whatever `hidden` [tokens, width] is in."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())[:, 0]


def add_value_head(policy: nn.Module) -> None:
    """A linear head on the policy's last hidden states, which says 0 of everything at first. It is trained and saved
    with checkpoints beside `policy.lm`, and is no part of what is saved as the result."""
    width = policy.lm.get_output_embeddings().weight.shape[1]
    head = nn.Linear(width, 1, dtype=torch.float32, device=policy.lm.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    policy.value_head = head


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Forward arguments of a transformers model. The empty 4-D mask of a packed row makes transformers build none,
    so that no [tokens, tokens] tensor exists."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if batch.token_type_ids is not None:
        inputs |= {"token_type_ids": batch.token_type_ids}
    if batch.adapters is not None:
        inputs |= {attention.ADAPTER_OF_ROW: batch.adapters}
    if batch.parents is not None:
        inputs |= {attention.PARENTS: batch.parents}
    if batch.cu_seq_lens is None:
        return inputs | {"attention_mask": batch.attention_mask}
    no_mask = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=batch.input_ids.device)
    return inputs | {"attention_mask": no_mask, "cu_seq_lens_q": batch.cu_seq_lens}


def filled_up(batch: Batch, multiple: int) -> Batch:
    """`batch` with one more sequence of arbitrary tokens at the end, and arbitrary trained tokens to be cut off."""
    if batch.cu_seq_lens is None or multiple == 1:
        return batch
    tokens = batch.input_ids.shape[1]
    more = -tokens % multiple
    more_trained = -len(batch.kept) % multiple
    end = batch.cu_seq_lens.new_tensor([tokens + more])
    filler = torch.arange(more, device=batch.position_ids.device)[None]
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, more)),
        position_ids=torch.cat([batch.position_ids, filler], dim=1),
        cu_seq_lens=torch.cat([batch.cu_seq_lens, end]) if more else batch.cu_seq_lens,
        token_type_ids=None if batch.token_type_ids is None else F.pad(batch.token_type_ids, (0, more)),
        parents=F.pad(batch.parents, (0, 1), value=-1) if more and batch.parents is not None else batch.parents,
        adapters=F.pad(batch.adapters, (0, 1)) if more and batch.adapters is not None else batch.adapters,
        kept=F.pad(batch.kept, (0, more_trained)),
        targets=F.pad(batch.targets, (0, more_trained)) if batch.targets.dim() == 1 else batch.targets,
    )


def _plain_and_frozen(head: nn.Module) -> bool:
    """Whether the head is exactly `x @ W.T + b` with nothing to learn: no adapter, no hook, no quantised weight."""
    return type(head) is nn.Linear and not head._forward_hooks and not any(p.requires_grad for p in head.parameters())


def use_packed_attention(lm: PreTrainedModel) -> None:
    lm.set_attn_implementation(attention.NAME)
