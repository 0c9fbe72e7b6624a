"""The order of training, a pure function of (seed, epoch): nothing to save, the same on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

SLOTS = 1000
"""Every so many examples hold each source as often as its share says, up to rounding."""


@lru_cache(maxsize=8)
def epoch_order(num_examples: int, *, seed: int, epoch: int, block: int = 0, source: int = 0) -> np.ndarray:
    """[num_examples] int64: a permutation of the examples for one pass over the data.

    `block` counts the parts of a stream that are shuffled one after another, `source` the sources of a mixture.
    """
    entropy = [seed, epoch, block, source] if block or source else [seed, epoch]
    order = np.random.default_rng(entropy).permutation(num_examples)
    order.setflags(write=False)
    return order


def examples_between(start: int, stop: int, num_examples: int, *, seed: int, source: int = 0) -> list[int]:
    """Indices of the examples that training sees from its `start`-th to before its `stop`-th, epochs end to end."""
    wanted: list[int] = []
    for epoch in range(start // num_examples, -(-stop // num_examples)):
        first = epoch * num_examples
        order = epoch_order(num_examples, seed=seed, epoch=epoch, source=source)
        wanted += order[max(start - first, 0) : min(stop - first, num_examples)].tolist()
    return wanted


class SourceSlots:
    """Which source each example of a mixture comes from.

    In every block of SLOTS places each source gets its share by systematic sampling (rounded up or down by chance, so
    that on average it is exact), and the block is shuffled: a pure function of (shares, seed, place).
    """

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        total = sum(shares)
        self._borders = np.cumsum([0.0, *(share / total for share in shares)]) * SLOTS
        self._borders[-1] = SLOTS
        self._seed = seed
        self._counts = [np.zeros(len(shares), np.int64)]
        """how often each source came up before block k"""

    def before(self, place: int) -> np.ndarray:
        """[sources] int64: how often each source comes up before `place`."""
        block, rest = divmod(place, SLOTS)
        for k in range(len(self._counts) - 1, block):
            self._counts.append(self._counts[-1] + self._block_counts(k))
        return self._counts[block] + np.bincount(self._block(block)[:rest], minlength=len(self._borders) - 1)

    def between(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] int64: the source of each place."""
        first, last = start // SLOTS, -(-stop // SLOTS)
        blocks = np.concatenate([self._block(k) for k in range(first, last)]) if last > first else np.zeros(0, int)
        return blocks[start - first * SLOTS : stop - first * SLOTS]

    def _block(self, block: int) -> np.ndarray:
        counts = self._block_counts(block)
        slots = np.repeat(np.arange(len(counts)), counts)
        return np.random.default_rng([self._seed, block, 1]).permutation(slots)

    def _block_counts(self, block: int) -> np.ndarray:
        offset = np.random.default_rng([self._seed, block, 2]).random()
        # Places offset, offset + 1, ... on the wheel of SLOTS; those before each border:
        before = np.clip(np.ceil(self._borders - offset), 0, SLOTS).astype(np.int64)
        return np.diff(before)
