"""What tells the adapters in a layer which rows they are for; see `tunecli.peft_methods.by_row`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Route:
    """Where the layer that is running gets its rows' adapters from."""

    names: list[str]
    """peft's names of the adapters"""
    rows: Tensor | None = None
    """[sequences] index into `names`; -1: none of them; None: every adapter for every row"""
    edges: Tensor | None = None
    """[sequences + 1] where each sequence of a packed row starts"""

    def share(self, number: int, like: Tensor) -> Tensor:
        """1 where a row of `like` [rows, tokens, ...], or a token of a packed row, is for adapter `number`, or 0."""
        assert self.rows is not None
        mine = self.rows == number
        if self.edges is not None:
            mine = torch.repeat_interleave(mine, self.edges.diff().long(), output_size=like.shape[1])[None]
        return mine.to(like.dtype).view(*mine.shape, *[1] * (like.dim() - mine.dim()))
