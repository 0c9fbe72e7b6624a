"""One tokenized example as it is read back: the same from the cache and from a stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[int, ...], tuple[float, ...], str]
"""What `Encoded.of` takes."""


@dataclass(frozen=True)
class Encoded:
    """The fields of `tunecli.data.tokens.Tokens`."""

    input_ids: Tensor
    """[n] int64"""
    spans: np.ndarray
    """[spans, 2] int32: start and end of what is trained"""
    labels: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    columns: str = ""

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        spans: np.ndarray,
        labels: tuple[str, ...] = (),
        parts: tuple[int, ...] = (),
        numbers: tuple[float, ...] = (),
        columns: str = "",
    ) -> Encoded:
        """`ids`: [n] of any integers. `spans`: [start, end, start, end, ...]."""
        import torch

        return cls(torch.from_numpy(ids.astype(np.int64)), spans.reshape(-1, 2), labels, parts, numbers, columns)

    @cached_property
    def trained(self) -> Tensor:
        """[n] bool: whether each token is in a span"""
        import torch

        mask = torch.zeros(len(self.input_ids), dtype=torch.bool)
        for start, end in self.spans:
            mask[start:end] = True
        return mask
