"""One micro-batch, the same for every stage and every rank. Nothing about a batch travels in any other way:
checkpointed layers run again in backward, when a context manager around forward has long closed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences as the model reads them, and the tokens that are trained.

    Packed: all sequences end to end in one row, `cu_seq_lens` set, `attention_mask` None.
    Padded: one row per sequence, padded on the right, `attention_mask` set, `cu_seq_lens` None.
    """

    input_ids: Tensor
    """[1, tokens] or [rows, width]"""
    position_ids: Tensor
    """the same shape, from 0 in every sequence that continues no other"""
    cu_seq_lens: Tensor | None
    """[sequences + 1] int32: where each packed sequence starts, and the end of the last"""
    attention_mask: Tensor | None
    """[rows, width]"""
    kept: Tensor
    """[trained] index into the flattened [rows * width] positions whose output predicts a target; those of the
    decoder, where there are `decoder_input_ids`"""
    targets: Tensor
    """[trained] what is to be predicted: ids of tokens or labels; float32 where that is a number, or
    [trained, labels] float32 of 0 and 1 where several labels may hold"""
    weights: Tensor
    """[trained] float32: how much each counts, usually 1; 0 in the rows that only fill up the last global batch.
    Where there are `candidates`, [questions]."""
    sources: Tensor
    """[trained] int64: number of the data source that each comes from. Where there are `candidates`, [questions]."""
    token_type_ids: Tensor | None = None
    """shape of `input_ids`: 1 in the second text of a pair; None: the model does not tell them apart"""
    decoder_input_ids: Tensor | None = None
    """[rows, decoder width] what the decoder of an encoder-decoder reads; None: there is no decoder beside"""
    decoder_attention_mask: Tensor | None = None
    """the same shape"""
    candidates: Tensor | None = None
    """[trained] int64: which candidate answer each is a token of; None: each stands for itself"""
    questions: Tensor | None = None
    """[candidates] int64: which question each is an answer to; those of one question stand together"""
    right: Tensor | None = None
    """[questions] int64: the candidate that is right"""
    margins: Tensor | None = None
    """[questions] float32: by how much the right candidate is better than the other, 0 where that is not known"""
    probabilities: Tensor | None = None
    """[questions] float32: that the right candidate is the better one"""
    scores: Tensor | None = None
    """[questions] float32: what the only candidate is worth; nan where two are compared"""
    reference: Tensor | None = None
    """[candidates] float32: log-probability of each under the reference, summed over its tokens"""
    parents: Tensor | None = None
    """[sequences] int64: the packed sequence that each goes on from, whose tokens it sees, and which goes on from
    none itself; -1: it stands for itself; None: all do"""
    old_logprobs: Tensor | None = None
    """[trained] float32: of tokens that a policy drew, under that policy"""
    reference_logprobs: Tensor | None = None
    """[trained] float32: under the reference"""
    old_values: Tensor | None = None
    """[trained] float32: what was expected before each was drawn"""
    advantages: Tensor | None = None
    """[trained] float32: how much better than expected each turned out"""
    returns: Tensor | None = None
    """[trained] float32: what values are to be"""
    adapters: Tensor | None = None
    """[sequences] int64: which adapter each is for; None: all of them for all"""
    num_tokens: int
    """real tokens of real rows (no padding, no fillers)"""
    rows: tuple[int, ...]
    """indices of the examples in the data set, fillers left out"""

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)
