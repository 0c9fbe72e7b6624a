"""Supervised fine-tuning: next-token cross-entropy on the trained tokens, averaged over those of the global batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from tunecli.data.batching import microbatches
from tunecli.engine.batch import Batch
from tunecli.engine.distributed import sum_over_ranks
from tunecli.engine.stage import Evaluation, LossOutput, means
from tunecli.evaluation.evaluator import Abandoned, Evaluator
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
    metrics = _losses(setting, model, proceed)
    # Unwrapped, the model has lost accelerate's autocast, which adapters in fp32 on a bf16 base need.
    with setting.accelerator.autocast():
        found = evaluator(setting.accelerator.unwrap_model(model), proceed)
    metrics |= found.metrics | {name: sum(each) / len(each) for name, each in found.right.items()}
    return replace(found, metrics={f"eval/{name}": value for name, value in metrics.items()})


@torch.no_grad()
def _losses(setting: Setting, model: nn.Module, proceed: Callable[[float], bool]) -> dict[str, float]:
    """Mean loss of the validation tokens, of those of each source, and the perplexity."""
    validation = setting.validation
    if validation is None:
        return {}
    sums: Counter[str] = Counter()
    for start in range(0, len(validation), setting.global_batch_size):
        if not proceed(start / len(validation)):
            raise Abandoned
        indices = range(start, min(start + setting.global_batch_size, len(validation)))
        for batch in microbatches(validation, indices, setting.batching):
            batch = batch.to(setting.accelerator.device)
            output = loss(model, batch, validation.names)
            sums.update({name: value.item() for name, value in output.sums(batch.weights.sum()).items()})
    losses = means(sum_over_ranks(setting.accelerator, sums))
    return losses | {"perplexity": math.exp(min(losses["loss"], MOST_NATS))}
