"""What stages share whose model has a head for labels. Several data sets are several tasks, each with its own labels:
see `tunecli.ops.label_losses`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import numpy as np
import torch
from torch import nn

from tunecli.config.stage import ProblemType
from tunecli.data.labels import Labels
from tunecli.engine.batch import Batch
from tunecli.engine.stage import Evaluation, LossOutput
from tunecli.evaluation.predictions import predict
from tunecli.ops import label_losses
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import by_source

LOSSES = {
    ProblemType.single_label: label_losses.single_label,
    ProblemType.multi_label: label_losses.multi_label,
    ProblemType.regression: label_losses.regression,
}

Scores = Callable[[list[str], list[int], list[np.ndarray]], dict[str, float]]
"""Metrics of one task, of its labels, the indices of its examples, and the logits [units, labels] of each."""


def label_loss(
    model: nn.Module, batch: Batch, names: list[str], *, labels: Labels, problem: ProblemType
) -> LossOutput:
    logits = model(batch)
    own = labels.own(names).to(logits.device)[batch.sources]
    return by_source(LOSSES[problem](logits, batch.targets, own) * batch.weights, batch, names)


def measure(
    setting: Setting, problem: ProblemType, scores: Scores, model: nn.Module, proceed: Callable[[float], bool]
) -> Evaluation:
    """The loss of the validation examples, and the metrics of each task; of several tasks their means too.

    Raises:
        Abandoned: `proceed` said no.
    """
    examples, labels = setting.validation, setting.labels
    assert examples is not None and labels is not None
    logits = predict(model, examples, setting.batching, setting.accelerator, proceed)
    losses = _losses(setting, problem, logits)
    found = {"loss": float(losses[:, 0].sum() / losses[:, 1].sum())}
    sources = np.asarray(examples.sources)
    several = len(examples.names) > 1
    for number, name in enumerate(examples.names):
        rows, own = np.flatnonzero(sources == number).tolist(), labels.range_of(name)
        values = scores(labels.of(name), rows, [logits[i][:, own.start : own.stop] for i in rows])
        found |= {f"{metric}/{name}" if several else metric: value for metric, value in values.items()}
    found = means_of_tasks(found) | found if several else found
    return Evaluation({f"eval/{name}": value for name, value in found.items()}, predictions=logits, losses=losses)


def _losses(setting: Setting, problem: ProblemType, logits: list[np.ndarray]) -> np.ndarray:
    """[examples, 2] float64: summed loss and weight of each."""
    examples, labels = setting.validation, setting.labels
    assert examples is not None and labels is not None
    own = labels.own(examples.names)
    found = np.zeros((len(logits), 2))
    for i, each in enumerate(logits):
        source = int(examples.sources[i])
        reading = setting.batching.read(examples[i], examples.names[source], i)
        losses = LOSSES[problem](torch.from_numpy(each), reading.targets, own[source].expand(len(each), -1))
        found[i] = float((losses * reading.weights).sum()), float(reading.weights.sum())
    return found


def means_of_tasks(found: dict[str, float]) -> dict[str, float]:
    """Each metric averaged over the tasks."""
    kinds = dict.fromkeys(name.partition("/")[0] for name in found if "/" in name)
    return {kind: mean(value for name, value in found.items() if name.startswith(f"{kind}/")) for kind in kinds}
