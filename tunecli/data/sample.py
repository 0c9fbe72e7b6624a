"""Some of the examples of a data set, as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tunecli.data.batching import Examples
from tunecli.data.encoded import Encoded


@dataclass(frozen=True)
class Some:
    """Of `examples` those with these `indices`, in their order."""

    examples: Examples
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Encoded:
        return self.examples[self.indices[index]]

    def origin(self, index: int) -> str:
        return self.examples.origin(self.indices[index])

    @cached_property
    def lengths(self) -> Sequence[int]:
        return [int(self.examples.lengths[i]) for i in self.indices]

    @cached_property
    def names(self) -> list[str]:
        """Of the sources that are left."""
        left = {int(self.examples.sources[i]) for i in self.indices}
        return [name for number, name in enumerate(self.examples.names) if number in left]

    @cached_property
    def sources(self) -> Sequence[int]:
        own = self.examples.names
        return [self.names.index(own[int(self.examples.sources[i])]) for i in self.indices]

    @cached_property
    def adapters(self) -> Sequence[int]:
        return [int(self.examples.adapters[i]) for i in self.indices]


def drawn(examples: Examples, number: int, seed: int) -> Some:
    """At most `number` of them, a pure function of seed and size; in the order in which they stand."""
    order = np.random.default_rng(seed).permutation(len(examples))[:number]
    return Some(examples, np.sort(order).tolist())
