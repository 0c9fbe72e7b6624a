"""What a model of each task and problem gives for an example."""

from __future__ import annotations

from enum import Enum

from tunecli.config.stage import PretrainConfig, ProblemType, RewardConfig, StageConfig, Task, VerbalizeConfig


class Kind(Enum):
    single_label = "single_label"
    """one label for each text or pair of texts"""
    multi_label = "multi_label"
    """any number of labels"""
    regression = "regression"
    """a number"""
    reward = "reward"
    """a score for a text, or for each of two"""
    tags = "tags"
    """a label for each word"""
    text = "text"
    """an answer"""
    document = "document"
    """nothing but how likely its own tokens are"""

    @property
    def of_tokens(self) -> bool:
        """Measured by how likely tokens are, not by labels."""
        return self in (Kind.text, Kind.document)


def kind_of(stage: StageConfig) -> Kind:
    if isinstance(stage, VerbalizeConfig):
        return Kind.single_label
    if isinstance(stage, RewardConfig):
        return Kind.reward
    if isinstance(stage, PretrainConfig):
        return Kind.document
    if stage.task is Task.token_classification:
        return Kind.tags
    if stage.task is not Task.sequence_classification:
        return Kind.text
    return Kind(getattr(stage, "problem_type", ProblemType.single_label).value)
