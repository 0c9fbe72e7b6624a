"""Supervised fine-tuning: next-token cross-entropy on the trained tokens, averaged over those of the global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tunecli.data.batching import Batching, microbatches
from tunecli.data.dataset import TokenizedDataset
from tunecli.data.order import examples_between
from tunecli.engine.batch import Batch
from tunecli.engine.distributed import sum_over_ranks
from tunecli.engine.stage import LossOutput


@dataclass(slots=True)
class SFT:
    train: TokenizedDataset
    validation: TokenizedDataset | None
    batching: Batching
    accelerator: Accelerator
    global_batch_size: int
    num_examples: int
    """how many examples training sees in all, every repetition counted; the last step may be a short one"""
    seed: int
    seen: int = 0
    """examples trained on so far"""

    def steps(self, model: nn.Module) -> Iterator[list[Batch]]:
        while self.seen < self.num_examples:
            end = min(self.seen + self.global_batch_size, self.num_examples)
            indices = examples_between(self.seen, end, len(self.train), seed=self.seed)
            # Counted before the step: when the loop saves, the step that was yielded has been taken.
            self.seen = end
            yield microbatches(self.train, indices, self.batching)

    def weight(self, batch: Batch) -> Tensor:
        return batch.weights.sum()

    def loss(self, model: nn.Module, batch: Batch) -> LossOutput:
        return LossOutput(-(model(batch) * batch.weights).sum())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, proceed: Callable[[float], bool]) -> dict[str, float]:
        if self.validation is None:
            return {}
        total, weight = 0.0, 0.0
        for start in range(0, len(self.validation), self.global_batch_size):
            if not proceed(start / len(self.validation)):
                return {}
            indices = range(start, min(start + self.global_batch_size, len(self.validation)))
            for batch in microbatches(self.validation, indices, self.batching):
                batch = batch.to(self.accelerator.device)
                total += self.loss(model, batch).total.item()
                weight += self.weight(batch).item()
        sums = sum_over_ranks(self.accelerator, {"loss": total, "weight": weight})
        return {"eval/loss": sums["loss"] / max(sums["weight"], 1.0)}

    def describe(self, batch: Batch) -> list[str]:
        return [self.train.origin(row) for row in batch.rows]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
