"""The order of training, a pure function of (seed, epoch): nothing to save, the same on any number of processes."""

from __future__ import annotations

import numpy as np


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """[num_examples] int64: a permutation of the examples for one pass over the data."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def examples_between(start: int, stop: int, num_examples: int, *, seed: int) -> list[int]:
    """Indices of the examples that training sees from its `start`-th to before its `stop`-th, epochs end to end."""
    wanted: list[int] = []
    for epoch in range(start // num_examples, (stop - 1) // num_examples + 1):
        first = epoch * num_examples
        order = epoch_order(num_examples, seed=seed, epoch=epoch)
        wanted += order[max(start - first, 0) : min(stop - first, num_examples)].tolist()
    return wanted
