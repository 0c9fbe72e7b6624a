"""What all stages share that learn from examples with right answers: which examples come when, and in which
micro-batches. What is learnt of them, and how well it is known, is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from tunecli.data.batching import Batching, Examples, microbatches
from tunecli.data.feed import Feed
from tunecli.engine.batch import Batch
from tunecli.engine.stage import Evaluation, LossOutput
from tunecli.evaluation.evaluator import Abandoned

Loss = Callable[[nn.Module, Batch, list[str]], LossOutput]
"""of a micro-batch, whose examples come from sources of these names"""
Measure = Callable[[nn.Module, Callable[[float], bool]], Evaluation]
"""What is measured of a model. The second argument is that of `Stage.evaluate`; `Abandoned` is raised where it says
no."""
Prepare = Callable[[nn.Module, Examples, Sequence[int], list[Batch]], list[Batch]]
"""The micro-batches of a step with what else is to be known before the first of them: of which examples they are."""


@dataclass(slots=True, kw_only=True)
class Supervised:
    feed: Feed | None
    """None: nothing is trained, only measured"""
    batching: Batching
    accelerator: Accelerator
    global_batch_size: int
    num_examples: int
    """how many examples training sees in all, every repetition counted; the last step may be a short one"""
    loss_of: Loss
    measure: Measure
    prepared: Prepare | None = None
    """None: nothing else is to be known"""
    seen: int = 0
    """examples trained on so far"""
    _drawn: Examples | None = field(default=None, init=False)
    """what the examples of the current step are among"""

    def steps(self, model: nn.Module) -> Iterator[list[Batch]]:
        assert self.feed is not None
        while self.seen < self.num_examples:
            count = min(self.global_batch_size, self.num_examples - self.seen)
            self._drawn, indices = self.feed.take(count)
            # Counted before the step: when the loop saves, the step that was yielded has been taken.
            self.seen += count
            batches = microbatches(self._drawn, indices, self.batching, first=self.seen - count)
            yield batches if self.prepared is None else self.prepared(model, self._drawn, indices, batches)

    def weight(self, batch: Batch) -> Tensor:
        return batch.weights.sum()

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        assert self.feed is not None
        return self.loss_of(model, batch, self.feed.names)

    def evaluate(self, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
        try:
            return self.measure(model, proceed)
        except Abandoned:
            return Evaluation()

    def describe(self, batch: Batch) -> list[str]:
        assert self._drawn is not None
        return [self._drawn.origin(row) for row in batch.rows]

    def state_dict(self) -> dict[str, Any]:
        assert self.feed is not None
        return {"seen": self.seen, "feed": self.feed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.feed is not None
        self.seen = state["seen"]
        self.feed.load_state_dict(state["feed"])


def by_source(losses: Tensor, batch: Batch, names: list[str]) -> LossOutput:
    """Weighted losses [units], summed; where there are several data sources also over those of each."""
    if len(names) == 1:
        return LossOutput(losses.sum())
    zeros = losses.new_zeros(len(names), dtype=batch.weights.dtype)
    sums = zeros.index_add(0, batch.sources, losses.detach().float())
    units = zeros.index_add(0, batch.sources, batch.weights)
    return LossOutput(losses.sum(), parts={f"loss/{name}": (sums[i], units[i]) for i, name in enumerate(names)})
