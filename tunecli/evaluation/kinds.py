"""What a model of each task and problem gives for an example."""

from __future__ import annotations

from enum import Enum

from tunecli.config.stage import ProblemType, StageConfig, Task


class Kind(Enum):
    single_label = "single_label"
    """one label for each text or pair of texts"""
    multi_label = "multi_label"
    """any number of labels"""
    regression = "regression"
    """a number"""
    tags = "tags"
    """a label for each word"""
    text = "text"
    """an answer"""


def kind_of(stage: StageConfig) -> Kind:
    if stage.task is Task.token_classification:
        return Kind.tags
    if stage.task is not Task.sequence_classification:
        return Kind.text
    return Kind(getattr(stage, "problem_type", ProblemType.single_label).value)
