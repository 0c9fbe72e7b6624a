"""What a training stage is to the loop. A stage sums; the loop divides once, by the global number of units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from tunecli.engine.batch import Batch


@dataclass(frozen=True, slots=True)
class LossOutput:
    total: Tensor
    """scalar: the loss summed over the units that `Stage.weight` counts"""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """sums over the same units; logged divided by their number"""


class Stage(Protocol):
    def steps(self, model: nn.Module) -> Iterator[list[Batch]]:
        """The micro-batches of one optimizer step after another: equally many on every rank."""
        ...

    def weight(self, batch: Batch) -> Tensor:
        """Number of units (tokens, pairs) that the loss of this micro-batch sums over."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput: ...

    def evaluate(self, model: nn.Module, proceed: Callable[[float], bool]) -> dict[str, float]:
        """Validation metrics over all ranks; empty without validation data.

        `proceed` takes the share done so far and is asked by all ranks together before each batch; when it says no,
        the evaluation is abandoned and the answer is empty.
        """
        ...

    def describe(self, batch: Batch) -> list[str]:
        """What is in a micro-batch, for a person: file and row of each example."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that `load_state_dict` resumes from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
