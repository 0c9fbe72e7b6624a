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

from tunecli.data.encoded import Encoded
from tunecli.data.reading import Reader, Reading, next_tokens
from tunecli.engine.batch import Batch

NUMBERS = ("margins", "probabilities", "scores", "reference")
"""What `Answers` may hold of each question or candidate."""


class Examples(Protocol):
    """Tokenised examples, e.g. `tunecli.data.mixture.Mixture`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Encoded: ...
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
    read: Reader = next_tokens
    """what the model is to predict of an example"""
    copies: int = 1
    """how many times as long as an example what is read of it may be"""


def microbatches(
    examples: Examples, indices: Sequence[int], batching: Batching, *, first: int | None = None
) -> list[Batch]:
    """This rank's micro-batches of one global batch.

    Args:
        first: the place of the first of them in the order of training; None: they are not trained on.
    """
    lengths = [int(examples.lengths[i]) * batching.copies for i in indices]
    numbers = indices if first is None else range(first, first + len(indices))
    plans = [_cut(rows, lengths, batching) for rows in _share(lengths, batching.num_processes)]
    wanted = max(map(len, plans))
    mine = plans[batching.process_index]
    filler = indices[min(range(len(lengths)), key=lengths.__getitem__)]
    batches = [
        collate(examples, [indices[row] for row in rows], batching, numbers=[numbers[row] for row in rows])
        for rows in mine
    ]
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


def collate(
    examples: Examples,
    indices: Sequence[int],
    batching: Batching,
    *,
    numbers: Sequence[int] | None = None,
    filler: bool = False,
) -> Batch:
    """One micro-batch of the given examples, packed into one row or padded on the right.

    Args:
        numbers: of the examples, as readers take them; None: their indices.
    """
    sources = torch.tensor([int(examples.sources[i]) for i in indices])
    readings = [
        batching.read(examples[i], examples.names[source], number)
        for i, source, number in zip(indices, sources.tolist(), indices if numbers is None else numbers, strict=True)
    ]
    outputs = [length for reading in readings for length in reading.outputs]
    width = max(outputs)
    starts = [0]
    for length in outputs:
        starts.append(starts[-1] + (length if batching.packed else width))
    units = torch.tensor([len(reading.weights) for reading in readings])
    weights = torch.cat([reading.weights for reading in readings])
    adapters = torch.tensor([int(examples.adapters[i]) for i in indices])
    sequences = torch.tensor([len(reading.lengths) for reading in readings])
    return Batch(
        **(_packed(readings, starts) if batching.packed else _padded(readings, batching.pad_token_id)),
        **_answers(readings),
        **_parents(readings),
        kept=_kept(readings, starts),
        targets=torch.cat([reading.targets for reading in readings]),
        weights=torch.zeros_like(weights) if filler else weights,
        sources=sources.repeat_interleave(units),
        adapters=adapters.repeat_interleave(sequences) if (adapters >= 0).any() else None,
        num_tokens=0 if filler else sum(map(_num_tokens, readings)),
        rows=() if filler else tuple(indices),
    )


def _kept(readings: list[Reading], starts: list[int]) -> Tensor:
    """[trained] places in the flattened batch, whose sequences begin at `starts`."""
    found, done = [], 0
    for reading in readings:
        own = torch.tensor([0, *(reading.starts if reading.decoder_input_ids is None else reading.decoder_starts)])
        there = torch.tensor(starts[done : done + len(own)])
        sequence = torch.searchsorted(own, reading.kept, right=True) - 1
        found.append(reading.kept + (there - own)[sequence])
        done += len(own)
    return torch.cat(found)


def _answers(readings: list[Reading]) -> dict[str, Tensor]:
    """With candidates and questions counted through the batch; nothing where units stand for themselves."""
    candidates, questions, right = [], [], []
    num_candidates = num_questions = 0
    known = [reading.answers for reading in readings if reading.answers is not None]
    for answers in known:
        candidates.append(answers.candidates + num_candidates)
        questions.append(answers.questions + num_questions)
        right.append(answers.right + num_candidates)
        num_candidates += len(answers.questions)
        num_questions += len(answers.right)
    if not candidates:
        return {}
    numbers = {
        name: torch.cat([getattr(answers, name) for answers in known])
        for name in NUMBERS
        if all(getattr(answers, name) is not None for answers in known)
    }
    found = {"candidates": torch.cat(candidates), "questions": torch.cat(questions), "right": torch.cat(right)}
    return found | numbers


def _parents(readings: list[Reading]) -> dict[str, Tensor]:
    """Counted through the batch."""
    if all(reading.parents is None for reading in readings):
        return {}
    found, done = [], 0
    for reading in readings:
        count = len(reading.lengths)
        own = torch.full((count,), -1) if reading.parents is None else reading.parents
        found.append(torch.where(own < 0, own, own + done))
        done += count
    return {"parents": torch.cat(found)}


def _packed(readings: list[Reading], starts: list[int]) -> dict[str, Tensor | None]:
    types = [reading.token_types for reading in readings if reading.token_types is not None]
    return {
        "input_ids": torch.cat([reading.input_ids for reading in readings])[None],
        "position_ids": torch.cat(_positions(readings))[None],
        "cu_seq_lens": torch.tensor(starts, dtype=torch.int32),
        "attention_mask": None,
        "token_type_ids": torch.cat(types)[None] if types else None,
    }


def _padded(readings: list[Reading], pad_token_id: int) -> dict[str, Tensor | None]:
    def pad(parts: Sequence[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)

    positions = _positions(readings)
    lengths = [len(sequence) for sequence in positions]
    types = [reading.token_types for reading in readings if reading.token_types is not None]
    decoder = [
        part
        for reading in readings
        if reading.decoder_input_ids is not None
        for part in reading.decoder_input_ids.split(reading.outputs)
    ]
    return {
        "input_ids": pad(torch.cat([reading.input_ids for reading in readings]).split(lengths), pad_token_id),
        "position_ids": pad(positions, 0),
        "cu_seq_lens": None,
        "attention_mask": pad([torch.ones_like(sequence) for sequence in positions], 0),
        "token_type_ids": pad(torch.cat(types).split(lengths), 0) if types else None,
        "decoder_input_ids": pad(decoder, pad_token_id) if decoder else None,
        "decoder_attention_mask": pad([torch.ones_like(ids) for ids in decoder], 0) if decoder else None,
    }


def _num_tokens(reading: Reading) -> int:
    return len(reading.input_ids) + (0 if reading.decoder_input_ids is None else len(reading.decoder_input_ids))


def _positions(readings: list[Reading]) -> list[Tensor]:
    """Of each sequence."""
    return [torch.arange(length) for reading in readings for length in reading.lengths]
