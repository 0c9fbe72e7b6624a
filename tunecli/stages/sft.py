"""Supervised fine-tuning: next-token cross-entropy on the trained tokens, averaged over those of the global batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from tunecli.data.batching import microbatches
from tunecli.engine.batch import Batch
from tunecli.engine.distributed import sum_over_ranks
from tunecli.engine.stage import Evaluation, LossOutput, means
from tunecli.evaluation.evaluator import Abandoned, Evaluator
from tunecli.evaluation.predictions import kept_counts
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised, by_source

MOST_NATS = 700
"""Beyond this a perplexity is no number any more."""


def sft(setting: Setting) -> Supervised:
    return setting.supervised(loss, partial(measured, setting, setting.evaluator))


def loss(model: nn.Module, batch: Batch, names: list[str]) -> LossOutput:
    return by_source(-model(batch) * batch.weights, batch, names)


def measured(
    setting: Setting, evaluator: Evaluator, model: nn.Module, proceed: Callable[[float], bool]
) -> Evaluation:
    """The loss of the validation examples, and what the `evaluation` section asks for."""
    metrics, losses = _losses(setting, model, proceed)
    # Unwrapped, the model has lost accelerate's autocast, which adapters in fp32 on a bf16 base need.
    with setting.accelerator.autocast():
        found = evaluator(setting.accelerator.unwrap_model(model), proceed)
    metrics |= found.metrics | {name: sum(each) / len(each) for name, each in found.right.items()}
    return replace(found, metrics={f"eval/{name}": value for name, value in metrics.items()}, losses=losses)


@torch.no_grad()
def _losses(
    setting: Setting, model: nn.Module, proceed: Callable[[float], bool]
) -> tuple[dict[str, float], np.ndarray | None]:
    """Mean loss of the validation tokens, of those of each source, and the perplexity; and [examples, 2] float64, the
    summed loss and the trained tokens of each example."""
    validation = setting.validation
    if validation is None:
        return {}, None
    sums: Counter[str] = Counter()
    each = np.zeros((len(validation), 2))
    for start in range(0, len(validation), setting.global_batch_size):
        if not proceed(start / len(validation)):
            raise Abandoned
        indices = range(start, min(start + setting.global_batch_size, len(validation)))
        for batch in microbatches(validation, indices, setting.batching):
            batch = batch.to(setting.accelerator.device)
            losses = -model(batch) * batch.weights
            output = by_source(losses, batch, validation.names)
            sums.update({name: value.item() for name, value in output.sums(batch.weights.sum()).items()})
            if batch.rows:
                tokens = kept_counts(validation, batch, setting.batching)
                starts = np.cumsum(tokens) - tokens
                each[list(batch.rows), 0] = np.add.reduceat(losses.double().cpu().numpy(), starts)
                each[list(batch.rows), 1] = tokens
    found = means(sum_over_ranks(setting.accelerator, sums))
    return found | {"perplexity": math.exp(min(found["loss"], MOST_NATS))}, _over_ranks(setting, each)


def _over_ranks(setting: Setting, each: np.ndarray) -> np.ndarray:
    """Each example was computed on one rank, and is zero on the others."""
    if setting.accelerator.num_processes == 1:
        return each
    summed = setting.accelerator.reduce(torch.from_numpy(each).to(setting.accelerator.device), "sum")
    return summed.cpu().numpy()
