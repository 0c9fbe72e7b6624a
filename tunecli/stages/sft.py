"""Supervised fine-tuning: next-token cross-entropy on the trained tokens, averaged over those of the global batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tunecli.data.batching import Batching, Examples, microbatches
from tunecli.data.feed import Feed
from tunecli.engine.batch import Batch
from tunecli.engine.distributed import sum_over_ranks
from tunecli.engine.stage import Evaluation, LossOutput, means
from tunecli.evaluation.evaluator import Abandoned, Evaluator

MOST_NATS = 700
"""Beyond this a perplexity is no number any more."""


@dataclass(slots=True)
class SFT:
    feed: Feed
    validation: Examples | None
    evaluator: Evaluator
    batching: Batching
    accelerator: Accelerator
    global_batch_size: int
    num_examples: int
    """how many examples training sees in all, every repetition counted; the last step may be a short one"""
    seen: int = 0
    """examples trained on so far"""
    _drawn: Examples | None = field(default=None, init=False)
    """what the examples of the current step are among"""

    def steps(self, model: nn.Module) -> Iterator[list[Batch]]:
        while self.seen < self.num_examples:
            count = min(self.global_batch_size, self.num_examples - self.seen)
            self._drawn, indices = self.feed.take(count)
            # Counted before the step: when the loop saves, the step that was yielded has been taken.
            self.seen += count
            yield microbatches(self._drawn, indices, self.batching)

    def weight(self, batch: Batch) -> Tensor:
        return batch.weights.sum()

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        return _loss(model, batch, self.feed.names)

    def evaluate(self, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
        try:
            metrics = self._losses(model, proceed)
            # Unwrapped, the model has lost accelerate's autocast, which adapters in fp32 on a bf16 base need.
            with self.accelerator.autocast():
                right, samples = self.evaluator(self.accelerator.unwrap_model(model), proceed)
        except Abandoned:
            return Evaluation()
        metrics |= {name: sum(each) / len(each) for name, each in right.items()}
        return Evaluation({f"eval/{name}": value for name, value in metrics.items()}, right, samples)

    @torch.no_grad()
    def _losses(self, model: nn.Module, proceed: Callable[[float], bool]) -> dict[str, float]:
        """Mean loss of the validation tokens, of those of each source, and the perplexity."""
        if self.validation is None:
            return {}
        sums: Counter[str] = Counter()
        for start in range(0, len(self.validation), self.global_batch_size):
            if not proceed(start / len(self.validation)):
                raise Abandoned
            indices = range(start, min(start + self.global_batch_size, len(self.validation)))
            for batch in microbatches(self.validation, indices, self.batching):
                batch = batch.to(self.accelerator.device)
                output = _loss(model, batch, self.validation.names)
                sums.update({name: value.item() for name, value in output.sums(self.weight(batch)).items()})
        losses = means(sum_over_ranks(self.accelerator, sums))
        return losses | {"perplexity": math.exp(min(losses["loss"], MOST_NATS))}

    def describe(self, batch: Batch) -> list[str]:
        assert self._drawn is not None
        return [self._drawn.origin(row) for row in batch.rows]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "feed": self.feed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        self.feed.load_state_dict(state["feed"])


def _loss(model: nn.Module, batch: Batch, names: list[str]) -> LossOutput:
    """Summed over the trained tokens, and where there are several data sources also over those of each."""
    losses = -model(batch) * batch.weights
    if len(names) == 1:
        return LossOutput(losses.sum())
    zeros = torch.zeros(len(names), device=losses.device)
    by_source = zeros.index_add(0, batch.sources, losses.detach().float())
    tokens = zeros.index_add(0, batch.sources, batch.weights)
    return LossOutput(losses.sum(), parts={f"loss/{name}": (by_source[i], tokens[i]) for i, name in enumerate(names)})
