"""Sequences that begin alike, as the answers of a pair do with their prompt: what they share is read once.

The beginning becomes a sequence of its own, and the rest of each goes on from there
(`tunecli.models.attention`). What the model says is the same as if each were read whole.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from tunecli.data.reading import Reading


def with_shared_beginning(reading: Reading) -> Reading:
    """`reading` with what all of its sequences begin with as the first of them. Each keeps a token of its own, as its
    last state may stand for the whole."""
    sequences = reading.input_ids.tensor_split(reading.starts)
    shared = shared_length(sequences)
    if len(sequences) < 2 or shared == 0 or reading.decoder_input_ids is not None:
        return reading
    rests = [sequence[shared:] for sequence in sequences]
    lengths = [shared, *map(len, rests)]
    starts = torch.tensor(lengths).cumsum(0).tolist()[:-1]
    return replace(
        reading,
        input_ids=torch.cat([sequences[0][:shared], *rests]),
        kept=_moved(reading.kept, torch.tensor([0, *reading.starts]), torch.tensor(starts), shared),
        starts=tuple(starts),
        parents=torch.tensor([-1, *[0] * len(rests)]),
    )


def shared_length(sequences: tuple[Tensor, ...]) -> int:
    """Tokens that all begin with; fewer than the shortest has."""
    most = min(map(len, sequences)) - 1
    alike = torch.ones(most, dtype=torch.bool)
    for first, second in pairwise(sequences):
        alike &= first[:most] == second[:most]
    return int(alike.int().cumprod(0).sum())


def _moved(places: Tensor, old: Tensor, new: Tensor, shared: int) -> Tensor:
    """From `places` in sequences that start at `old` to those in a tree whose endings start at `new`."""
    sequence = torch.searchsorted(old, places, right=True) - 1
    within = places - old[sequence]
    return torch.where(within < shared, within, new[sequence] + within - shared)
