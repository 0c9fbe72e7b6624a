"""How likely tokens are that may come next, through `Policy`: end to end in one row where that is exact, else padded.

The output embedding of a model in bf16 is multiplied in fp32: bf16 logits of 20 lie 0.125 apart, and verdicts often
differ by less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tunecli.engine.batch import Batch
from tunecli.models.policy import Policy


@dataclass(frozen=True, slots=True)
class Wanted:
    """One sequence, and what is wanted of it."""

    ids: list[int]
    places: list[int]
    """position whose output is asked, for each of `targets`; one may be asked several times"""
    targets: list[int]


@torch.no_grad()
def logprobs(policy: Policy, wanted: Sequence[Wanted], *, batch_tokens: int, pad_token_id: int) -> list[list[float]]:
    """Log-probability of each target of each sequence."""
    found: list[list[float]] = [[] for _ in wanted]
    device = next(policy.parameters()).device
    with _exact_head(policy):
        for group, batch in batches(
            wanted, packed=policy.packed, batch_tokens=batch_tokens, pad_token_id=pad_token_id
        ):
            values = iter(policy(batch.to(device)).float().tolist())
            for i in group:
                found[i] = [next(values) for _ in wanted[i].targets]
    return found


def batches(
    wanted: Sequence[Wanted], *, packed: bool, batch_tokens: int, pad_token_id: int
) -> Iterator[tuple[list[int], Batch]]:
    """Indices of the sequences that are computed together, and these as a batch, longest first."""
    for group in _groups(wanted, batch_tokens):
        members = [wanted[i] for i in group]
        yield group, _packed(members) if packed else _padded(members, pad_token_id)


class _Float32Head(nn.Module):
    """An output embedding that shares its weights with another one."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float())


@contextmanager
def _exact_head(policy: Policy) -> Iterator[None]:
    """In place of a plain head in half precision. Generating goes without it: it would convert the weights anew for
    each token."""
    head = policy.lm.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    policy.lm.set_output_embeddings(_Float32Head(head))
    try:
        yield
    finally:
        policy.lm.set_output_embeddings(head)


def _groups(wanted: Sequence[Wanted], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences that are computed together, longest first."""
    group: list[int] = []
    for i in sorted(range(len(wanted)), key=lambda i: -len(wanted[i].ids)):
        if group and len(wanted[group[0]].ids) * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _packed(members: Sequence[Wanted]) -> Batch:
    lengths = torch.tensor([0, *(len(each.ids) for each in members)])
    starts = lengths.cumsum(0)
    return _batch(
        members,
        input_ids=torch.tensor([[token for each in members for token in each.ids]]),
        position_ids=torch.cat([torch.arange(len(each.ids)) for each in members])[None],
        cu_seq_lens=starts.to(torch.int32),
        attention_mask=None,
        starts=starts[:-1].tolist(),
    )


def _padded(members: Sequence[Wanted], pad_token_id: int) -> Batch:
    ids = [torch.tensor(each.ids) for each in members]
    padded = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)
    return _batch(
        members,
        input_ids=padded,
        position_ids=torch.arange(padded.shape[1]).expand(len(members), -1),
        cu_seq_lens=None,
        attention_mask=pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        starts=[row * padded.shape[1] for row in range(len(members))],
    )


def _batch(
    members: Sequence[Wanted],
    *,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    cu_seq_lens: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    starts: Sequence[int],
) -> Batch:
    kept = [start + place for start, each in zip(starts, members, strict=True) for place in each.places]
    targets = [target for each in members for target in each.targets]
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seq_lens=cu_seq_lens,
        attention_mask=attention_mask,
        kept=torch.tensor(kept),
        targets=torch.tensor(targets),
        weights=torch.ones(len(kept)),
        sources=torch.zeros(len(kept), dtype=torch.int64),
        num_tokens=sum(len(each.ids) for each in members),
        rows=tuple(range(len(members))),
    )
