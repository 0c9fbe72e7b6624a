"""Prompt-based classification without a new head (Schick and Schuetze, 2021, PET, arXiv:2001.07676; Gao et al.,
2021, LM-BFF, arXiv:2012.15723).

Each label is a word, and the text a sentence with a gap. The score of a label is the log-probability of its word in
the gap, the sum over the word's tokens; the loss is the cross-entropy over the labels' scores (PET's equation 1,
with log-probabilities in place of logits, which is the same for words of one token). Of several templates each is a
question of its own in training. Asked, their scores are averaged, or they vote. Departs from PET: one model for all
templates instead of one each, no unlabelled data, no auxiliary language-model loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from tunecli.config.evaluation import Combine
from tunecli.config.stage import VerbalizeConfig
from tunecli.data.batching import Batching, Examples
from tunecli.data.labels import Labels
from tunecli.engine.batch import Batch
from tunecli.engine.stage import Evaluation, LossOutput
from tunecli.evaluation import metrics
from tunecli.evaluation.ensemble import best_choice, same_questions
from tunecli.evaluation.predictions import predict
from tunecli.ops.choices import candidate_scores, choice_losses
from tunecli.stages.heads import means_of_tasks
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised, by_source


def verbalize(setting: Setting) -> Supervised:
    assert isinstance(setting.config, VerbalizeConfig) and setting.labels is not None
    return setting.supervised(loss, partial(_measured, setting))


def scores(model: nn.Module, batch: Batch) -> Tensor:
    """[candidates] fp32"""
    assert batch.candidates is not None and batch.questions is not None
    return candidate_scores(model(batch), batch.candidates, len(batch.questions))


def loss(model: nn.Module, batch: Batch, names: list[str]) -> LossOutput:
    assert batch.questions is not None and batch.right is not None
    losses = choice_losses(scores(model, batch), batch.questions, batch.right)
    return by_source(losses * batch.weights, batch, names)


def _measured(setting: Setting, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
    examples, labels = setting.validation, setting.labels
    if examples is None:
        return Evaluation()
    assert labels is not None
    found = predict(model, examples, setting.batching, setting.accelerator, proceed, scores)
    tables = _tables(found, examples, labels)
    names = [labels.of(examples.names[int(source)]) for source in examples.sources]
    targets = [own.index(examples[i].labels[0]) for i, own in enumerate(names)]
    losses = np.array([_loss_of(table, target) for table, target in zip(tables, targets, strict=True)])
    groups = same_questions(examples)
    logits = _answers(tables, groups, setting.evaluator.config.combine)
    right = [int(each.argmax()) == targets[group[0]] for each, group in zip(logits, groups, strict=True)]
    values = {"loss": float(losses[:, 0].sum() / losses[:, 1].sum())} | _by_task(examples, groups, logits, targets)
    return Evaluation(
        {f"eval/{name}": value for name, value in values.items()},
        {"accuracy": right},
        predictions=_predictions(examples, labels, groups, logits),
        losses=losses,
    )


def answers(
    model: nn.Module,
    examples: Examples,
    batching: Batching,
    accelerator: Accelerator,
    labels: Labels,
    combine: Combine,
) -> list[np.ndarray]:
    """[1, labels of all tasks] logits for each example, whose label nobody needs to know."""
    tables = _tables(predict(model, examples, batching, accelerator, outputs=scores), examples, labels)
    groups = same_questions(examples)
    return _predictions(examples, labels, groups, _answers(tables, groups, combine))


def _tables(found: list[np.ndarray], examples: Examples, labels: Labels) -> list[Tensor]:
    """[templates, labels] scores of each example."""
    sizes = [len(labels.of(examples.names[int(source)])) for source in examples.sources]
    return [torch.from_numpy(each).view(-1, size) for each, size in zip(found, sizes, strict=True)]


def _answers(tables: list[Tensor], groups: list[list[int]], combine: Combine) -> list[np.ndarray]:
    """[labels] logits for each question."""
    return [combined(torch.cat([tables[i] for i in group]), combine) for group in groups]


def _loss_of(table: Tensor, target: int) -> tuple[float, float]:
    """Summed over the questions about an example, whose scores are `table`; and their number."""
    return float(F.cross_entropy(table, torch.full((len(table),), target), reduction="sum")), float(len(table))


def _predictions(
    examples: Examples, labels: Labels, groups: list[list[int]], logits: list[np.ndarray]
) -> list[np.ndarray]:
    """[1, labels of all tasks] for each example, as a classifier gives them."""
    found = np.full((len(examples), 1, len(labels.names)), -np.inf, np.float32)
    for group, each in zip(groups, logits, strict=True):
        for i in group:
            own = labels.range_of(examples.names[int(examples.sources[i])])
            found[i, 0, own.start : own.stop] = each
    return list(found)


def _by_task(
    examples: Examples, groups: list[list[int]], logits: list[np.ndarray], targets: list[int]
) -> dict[str, float]:
    """Metrics of each task; of several tasks their means too."""
    sources = np.array([int(examples.sources[group[0]]) for group in groups])
    several = len(examples.names) > 1
    found: dict[str, float] = {}
    for number, name in enumerate(examples.names):
        own = np.flatnonzero(sources == number)
        measured = metrics.single_label(
            np.stack([logits[i] for i in own]), np.array([targets[groups[i][0]] for i in own])
        )
        found |= {f"{metric}/{name}" if several else metric: value for metric, value in measured.items()}
    return means_of_tasks(found) | found if several else found


def combined(table: Tensor, combine: Combine) -> np.ndarray:
    """[labels] logits of the answer of several templates: the mean of their scores, or the log of the votes' shares,
    of which ties are broken by the mean.

    Args:
        table: [templates, labels] scores.
    """
    if combine is Combine.mean:
        return table.mean(0).numpy()
    votes = torch.bincount(table.argmax(1), minlength=table.shape[1]).double()
    votes[best_choice(table, combine)] += 1e-9
    return votes.log().numpy()
