"""What a training stage is to the loop. A stage sums; the loop divides once, by the global number of units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from tunecli.engine.batch import Batch

UNITS = "units of "
"""Before the name of a part: the number of its units."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    total: Tensor
    """scalar: the loss summed over the units that `Stage.weight` counts"""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """sums over the same units; logged divided by their number"""
    parts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """sums over some of the units, and the number of those: logged divided by it (the loss of one data source, say);
    the same names in every micro-batch of every rank"""

    def sums(self, weight: Tensor) -> dict[str, Tensor]:
        """Everything that is to be added up over micro-batches and ranks, `weight` included, for `means`."""
        parts = {name: total for name, (total, _) in self.parts.items()}
        units = {UNITS + name: units for name, (_, units) in self.parts.items()}
        return {"loss": self.total.detach(), "weight": weight, **self.metrics, **parts, **units}


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Each sum divided by the units that it is over; without the parts that had none."""
    units = {name.removeprefix(UNITS): value for name, value in sums.items() if name.startswith(UNITS)}
    return {
        name: value / max(units.get(name, sums["weight"]), 1.0)
        for name, value in sums.items()
        if name != "weight" and not name.startswith(UNITS) and units.get(name, 1.0) > 0
    }


@dataclass(frozen=True, slots=True)
class Evaluation:
    metrics: dict[str, float] = field(default_factory=dict)
    """over all ranks; names begin with eval/"""
    right: dict[str, list[bool]] = field(default_factory=dict)
    """metric -> whether each validation example was answered rightly, for the shares among `metrics`"""
    samples: list[dict[str, str]] = field(default_factory=list)
    """what the model said: prompt, answer and, where there is a right answer, expected; on the main process"""
    predictions: list[np.ndarray] = field(default_factory=list)
    """[units, labels] fp32 logits of each validation example, of models that have a head for labels"""
    losses: np.ndarray | None = None
    """[examples, 2] float64: summed loss of each validation example, and the units that it is summed over"""


class Stage(Protocol):
    def steps(self, model: nn.Module) -> Iterator[list[Batch]]:
        """The micro-batches of one optimizer step after another: equally many on every rank."""
        ...

    def weight(self, batch: Batch) -> Tensor:
        """Number of units (tokens, pairs) that the loss of this micro-batch sums over."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput: ...

    def evaluate(self, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
        """What validation data and the `evaluation` section give; empty without either.

        `proceed` takes the share done so far and is asked by all ranks together before each batch; when it says no,
        the evaluation is abandoned and empty.
        """
        ...

    def describe(self, batch: Batch) -> list[str]:
        """What is in a micro-batch, for a person: file and row of each example."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that `load_state_dict` resumes from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
