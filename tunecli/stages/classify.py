"""Classification: a label for each text or pair of texts (cross-entropy), any number of labels (binary cross-entropy)
or a number (squared error), from the head that transformers put on the model (Devlin et al., 2019, for BERT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

from tunecli.config.stage import ClassifyConfig, ProblemType
from tunecli.engine.stage import Evaluation
from tunecli.evaluation import metrics
from tunecli.stages.heads import label_loss, measure
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised


def classify(setting: Setting) -> Supervised:
    assert isinstance(setting.config, ClassifyConfig) and setting.labels is not None
    problem = setting.config.problem_type
    loss = partial(label_loss, labels=setting.labels, problem=problem)
    return setting.supervised(loss, partial(_measured, setting, problem))


def _measured(
    setting: Setting, problem: ProblemType, model: nn.Module, proceed: Callable[[float], bool]
) -> Evaluation:
    examples = setting.validation
    if examples is None:
        return Evaluation()
    right: dict[int, bool] = {}

    def scores(labels: list[str], rows: list[int], logits: list[np.ndarray]) -> dict[str, float]:
        values, given = np.concatenate(logits), [examples[i].labels for i in rows]
        if problem is ProblemType.regression:
            return metrics.regression(values[:, 0], np.array([float(each[0]) for each in given]))
        if problem is ProblemType.multi_label:
            return metrics.multi_label(values, np.array([[label in each for label in labels] for each in given]))
        targets = np.array([labels.index(each[0]) for each in given])
        right.update(zip(rows, (values.argmax(1) == targets).tolist(), strict=True))
        return metrics.single_label(values, targets)

    found = measure(setting, problem, scores, model, proceed)
    return replace(found, right={"accuracy": [right[i] for i in range(len(examples))]} if right else {})
