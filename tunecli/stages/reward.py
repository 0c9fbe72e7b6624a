"""Reward models: a score for a whole text, from one linear head on the model (Stiennon et al., 2020,
arXiv:2009.01325; Ouyang et al., 2022, arXiv:2203.02155).

Pairs are learnt by comparison, texts with a score by squared error, each as its row has it; losses are in
`tunecli.ops.reward_losses`. The units of the loss are rows: a pair counts as much as a scored text.

Departs from Ouyang et al.: pairs are drawn one by one, not all pairs of one prompt in one batch; the head starts at
random as transformers has it; scores are not shifted after training to a mean of 0 (the centring term does that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tunecli.config.stage import RewardConfig
from tunecli.data.batching import Examples
from tunecli.data.encoded import Encoded
from tunecli.data.reading import PAIR
from tunecli.engine.batch import Batch
from tunecli.engine.stage import Evaluation, LossOutput
from tunecli.evaluation import metrics
from tunecli.evaluation.predictions import predict
from tunecli.ops.reward_losses import reward_losses
from tunecli.stages.heads import means_of_tasks
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised, by_source


def reward(setting: Setting) -> Supervised:
    assert isinstance(setting.config, RewardConfig)
    return setting.supervised(partial(loss, setting.config), partial(_measured, setting, setting.config))


def loss(config: RewardConfig, model: nn.Module, batch: Batch, names: list[str]) -> LossOutput:
    scores = model(batch)[:, 0]
    found = by_source(losses(config, scores, batch) * batch.weights, batch, names)
    return replace(found, parts=found.parts | _compared(scores.detach(), batch))


def losses(config: RewardConfig, scores: Tensor, batch: Batch) -> Tensor:
    """[questions], of `scores` [candidates]."""
    assert batch.right is not None and batch.scores is not None
    assert batch.margins is not None and batch.probabilities is not None
    return reward_losses(
        scores,
        batch.right,
        batch.scores,
        batch.margins * config.margin,
        batch.probabilities,
        center_coefficient=config.center_rewards_coefficient,
    )


def _compared(scores: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Accuracy and margin, summed over the pairs of which one is preferred."""
    assert batch.right is not None and batch.scores is not None and batch.probabilities is not None
    side = (batch.probabilities - 0.5).sign()
    counts = batch.weights * batch.scores.isnan() * side.abs()
    lead = side * (scores[batch.right] - scores[batch.right + batch.scores.isnan().long()])
    pairs = counts.sum()
    return {"accuracy": (((lead > 0) * counts).sum(), pairs), "margin": ((lead * counts).sum(), pairs)}


def _measured(
    setting: Setting, config: RewardConfig, model: nn.Module, proceed: Callable[[float], bool]
) -> Evaluation:
    """
    Raises:
        Abandoned: `proceed` said no.
    """
    examples = setting.validation
    if examples is None:
        return Evaluation()
    scores = predict(model, examples, setting.batching, setting.accelerator, proceed)
    each = np.array([_loss_of(config, examples[i], found) for i, found in enumerate(scores)])
    values = {"loss": float(each.mean())} | _by_source(examples, scores, each)
    leads = [lead_of(examples[i].numbers, found) for i, found in enumerate(scores)]
    known = [lead > 0 for lead in leads if lead is not None]
    return Evaluation(
        {f"eval/{name}": value for name, value in values.items()},
        {"preferred": known} if len(known) == len(leads) else {},
        predictions=scores,
        losses=np.stack([each, np.ones(len(each))], axis=1),
    )


def _by_source(examples: Examples, scores: Sequence[np.ndarray], each: np.ndarray) -> dict[str, float]:
    """Metrics of each source; of several sources their means too."""
    found: dict[str, float] = {}
    sources = np.asarray(examples.sources)
    several = len(examples.names) > 1
    for number, name in enumerate(examples.names):
        rows = np.flatnonzero(sources == number).tolist()
        values = measured([examples[i].numbers for i in rows], [scores[i] for i in rows])
        if several:
            values |= {"loss": float(each[rows].mean())}
        found |= {f"{metric}/{name}" if several else metric: value for metric, value in values.items()}
    if not several:
        return found
    return {name: value for name, value in means_of_tasks(found).items() if name != "loss"} | found


def measured(numbers: Sequence[tuple[float, ...]], scores: Sequence[np.ndarray]) -> dict[str, float]:
    """Of pairs how often, how far and how surely the preferred text leads; of scored texts how far off they are.

    Args:
        numbers: of each example, as `tunecli.data.tokens.Tokens` has them.
        scores: [texts, 1] of each example.
    """
    leads = [lead_of(own, found) for own, found in zip(numbers, scores, strict=True)]
    known = np.array([lead for lead in leads if lead is not None])
    single = [i for i, own in enumerate(numbers) if len(own) < PAIR]
    found = metrics.comparison(known) if len(known) else {}
    if single:
        values, targets = [scores[i][0, 0] for i in single], [numbers[i][0] for i in single]
        found |= metrics.regression(np.array(values), np.array(targets))
    return found


def lead_of(numbers: tuple[float, ...], scores: np.ndarray) -> float | None:
    """By how much the preferred text of a pair is ahead; None where neither is preferred, or there is one text."""
    if len(numbers) < PAIR or numbers[1] == 0.5:
        return None
    difference = float(scores[0, 0]) - float(scores[1, 0])
    return difference if numbers[1] > 0.5 else -difference


def _loss_of(config: RewardConfig, example: Encoded, scores: np.ndarray) -> float:
    is_pair = len(example.numbers) == PAIR
    margin, probability = example.numbers if is_pair else (0.0, 1.0)
    target = float("nan") if is_pair else example.numbers[0]
    found = reward_losses(
        torch.from_numpy(scores[:, 0]).double(),
        torch.zeros(1, dtype=torch.int64),
        *(torch.tensor([value], dtype=torch.float64) for value in (target, margin * config.margin, probability)),
        center_coefficient=config.center_rewards_coefficient,
    )
    return float(found)
