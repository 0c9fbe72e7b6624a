"""From the examples of one optimizer step to micro-batches: who computes what, and in which tensors.

Every rank plans for all ranks from the lengths alone, so the plan needs no communication, and every rank gets the
same number of micro-batches (collectives would hang otherwise); short ones are filled with rows of weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tunecli.engine.batch import Batch


class Examples(Protocol):
    """Tokenised examples, e.g. `tunecli.data.mixture.Mixture`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """`input_ids` [length] int64 and `trained` [length] bool: whether a token is a target of the loss."""
        ...

    def origin(self, index: int) -> str:
        """File and row."""
        ...

    @property
    def lengths(self) -> Sequence[int]: ...
    @property
    def names(self) -> list[str]:
        """Label of each source."""
        ...

    @property
    def sources(self) -> Sequence[int]:
        """The source of each example: an index into `names`."""
        ...

    @property
    def adapters(self) -> Sequence[int]:
        """Which adapter each example is for; -1: all of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How an optimizer step is cut up. Exactly one of `rows` and `tokens` is set."""

    num_processes: int
    process_index: int
    rows: int | None
    """examples per micro-batch"""
    tokens: int | None
    """tokens per micro-batch (with padding, where there is padding)"""
    packed: bool
    pad_token_id: int


def microbatches(examples: Examples, indices: Sequence[int], batching: Batching) -> list[Batch]:
    """This rank's micro-batches of one global batch."""
    lengths = [int(examples.lengths[i]) for i in indices]
    plans = [_cut(rows, lengths, batching) for rows in _share(lengths, batching.num_processes)]
    wanted = max(map(len, plans))
    mine = plans[batching.process_index]
    filler = indices[min(range(len(lengths)), key=lengths.__getitem__)]
    batches = [collate(examples, [indices[row] for row in rows], batching) for rows in mine]
    return batches + [collate(examples, [filler], batching, filler=True)] * (wanted - len(batches))


def _share(lengths: Sequence[int], num_processes: int) -> list[list[int]]:
    """Rows of each process, longest first, dealt to and fro so that counts and tokens are about equal."""
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    for place, row in enumerate(sorted(range(len(lengths)), key=lambda row: -lengths[row])):
        lap, seat = divmod(place, num_processes)
        shares[seat if lap % 2 == 0 else num_processes - 1 - seat].append(row)
    return shares


def _cut(rows: list[int], lengths: Sequence[int], batching: Batching) -> list[list[int]]:
    """Micro-batches of one process; `rows` come longest first."""
    if batching.rows is not None:
        return [rows[i : i + batching.rows] for i in range(0, len(rows), batching.rows)]
    assert batching.tokens is not None
    cost: Callable[[list[int]], int] = (
        (lambda group: sum(lengths[row] for row in group))
        if batching.packed
        else (lambda group: len(group) * max(lengths[row] for row in group))
    )
    groups: list[list[int]] = []
    for row in rows:  # first fit, longest first
        home = next((group for group in groups if cost([*group, row]) <= batching.tokens), None)
        if home is None:
            groups.append([row])
        else:
            home.append(row)
    return groups


def collate(examples: Examples, indices: Sequence[int], batching: Batching, *, filler: bool = False) -> Batch:
    """One micro-batch of the given examples, packed into one row or padded on the right."""
    pairs = [examples[i] for i in indices]
    lengths = [len(ids) for ids, _ in pairs]
    width = max(lengths)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + (length if batching.packed else width))
    # Token i is predicted at position i - 1; the first token of a sequence is predicted by nothing.
    kept = [start + trained[1:].nonzero()[:, 0] for start, (_, trained) in zip(starts, pairs, strict=False)]
    targets = torch.cat([ids[1:][trained[1:]] for ids, trained in pairs])
    positions = [torch.arange(length) for length in lengths]
    adapters = torch.tensor([int(examples.adapters[i]) for i in indices])
    return Batch(
        **(_packed if batching.packed else _padded)(pairs, positions, starts, batching.pad_token_id),
        kept=torch.cat(kept),
        targets=targets,
        weights=torch.full((len(targets),), 0.0 if filler else 1.0),
        sources=torch.tensor([int(examples.sources[i]) for i in indices]).repeat_interleave(
            torch.tensor([len(each) for each in kept])
        ),
        adapters=adapters if (adapters >= 0).any() else None,
        num_tokens=0 if filler else sum(lengths),
        rows=() if filler else tuple(indices),
    )


def _packed(
    pairs: list[tuple[Tensor, Tensor]], positions: list[Tensor], starts: list[int], _: int
) -> dict[str, Tensor | None]:
    return {
        "input_ids": torch.cat([ids for ids, _ in pairs])[None],
        "position_ids": torch.cat(positions)[None],
        "cu_seq_lens": torch.tensor(starts, dtype=torch.int32),
        "attention_mask": None,
    }


def _padded(
    pairs: list[tuple[Tensor, Tensor]], positions: list[Tensor], _: list[int], pad_token_id: int
) -> dict[str, Tensor | None]:
    def pad(parts: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    return {
        "input_ids": pad([ids for ids, _ in pairs], pad_token_id),
        "position_ids": pad(positions, 0),
        "cu_seq_lens": None,
        "attention_mask": pad([torch.ones_like(ids) for ids, _ in pairs], 0),
    }
