"""Tagging: a label for each word (cross-entropy), from one linear head on the states of its tokens, as in Devlin et
al., 2019, section 5.3, and in transformers. The tag of a word is read off its first token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import nn

from tunecli.config.stage import ProblemType, TagConfig
from tunecli.engine.stage import Evaluation
from tunecli.evaluation import metrics
from tunecli.evaluation.predictions import of_words, whole_texts
from tunecli.stages.heads import label_loss, measure
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised


def tag(setting: Setting) -> Supervised:
    assert isinstance(setting.config, TagConfig) and setting.labels is not None
    loss = partial(label_loss, labels=setting.labels, problem=ProblemType.single_label)
    return setting.supervised(loss, partial(_measured, setting))


def _measured(setting: Setting, model: nn.Module, proceed: Callable[[float], bool]) -> Evaluation:
    examples = setting.validation
    if examples is None:
        return Evaluation()

    def scores(labels: list[str], rows: list[int], logits: list[np.ndarray]) -> dict[str, float]:
        chosen = {
            i: [labels[number] for number in of_words(each, examples[i]).argmax(1)]
            for i, each in zip(rows, logits, strict=True)
        }
        texts = whole_texts(examples, rows)
        return metrics.tagging(
            [[tag for i in windows for tag in chosen[i]] for windows in texts],
            [[tag for i in windows for tag in examples[i].labels] for windows in texts],
        )

    return measure(setting, ProblemType.single_label, scores, model, proceed)
