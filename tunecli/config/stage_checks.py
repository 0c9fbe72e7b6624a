"""What stages with a head of their own get wrong, and their fit to the rest; see `tunecli.config.checks`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from tunecli.config.data import Overlong
from tunecli.config.errors import Problem
from tunecli.config.run import RunConfig
from tunecli.config.stage import ClassifyConfig, HeadConfig, ProblemType, RewardConfig, TagConfig


def stage_problems(config: RunConfig) -> Iterator[Problem]:
    if not isinstance(config.stage, HeadConfig):
        return
    yield from _labels(config, config.stage)
    yield from _evaluation(config)
    if isinstance(config.stage, ClassifyConfig):
        yield from _classify(config, config.stage)
    if isinstance(config.stage, RewardConfig):
        yield from _reward(config, config.stage)
    if isinstance(config.stage, TagConfig):
        yield from _tag(config, config.stage)


def _labels(config: RunConfig, stage: HeadConfig) -> Iterator[Problem]:
    if stage.labels and any(first == second for first, second in pairwise(sorted(stage.labels))):
        yield Problem("stage.labels", "names a label twice", "name each once")
    if len(stage.labels) == 1 and not isinstance(stage, RewardConfig):
        yield Problem("stage.labels", "is one label, and nothing is to be told apart", "name all, or stage.labels=[]")
    if stage.labels and not isinstance(stage, RewardConfig) and len({source.task for source in config.data.mix}) > 1:
        yield Problem("stage.labels", "is one list, and data.mix has several tasks", "stage.labels=[]")
    numbers = getattr(stage, "problem_type", None) is ProblemType.regression
    if config.data.streaming and not stage.labels and not numbers:
        fix = "stage.labels=[negative,positive], or data.streaming=false"
        yield Problem("stage.labels", "is empty, and the labels of a stream are not known before it ends", fix)
    rate = stage.head_learning_rate
    if rate is not None and not rate > 0:
        yield Problem("stage.head_learning_rate", f"is {rate}", "a number greater than 0")


def _evaluation(config: RunConfig) -> Iterator[Problem]:
    for name, none in {"exact_match": 0, "choices": [], "prompts": []}.items():
        if getattr(config.evaluation, name) != none:
            what = f"is for language models, and stage={config.stage.name} trains a head"
            yield Problem(f"evaluation.{name}", what, f"evaluation.{name}={none}")


def _classify(config: RunConfig, stage: ClassifyConfig) -> Iterator[Problem]:
    if config.data.overlong is Overlong.split:
        yield Problem("data.overlong", "split would give each part the label of the whole", "data.overlong=truncate")
    weighted = [name for name in ("class_weights", "balanced") if getattr(stage, name)]
    if len(weighted) > 1:
        fix = "stage.balanced=false, or stage.class_weights={}"
        yield Problem("stage.balanced", "is true, and stage.class_weights are given too", fix)
    if weighted and stage.problem_type is not ProblemType.single_label:
        what = f"has no meaning for problem_type={stage.problem_type.value}"
        yield Problem(f"stage.{weighted[0]}", what, "stage.problem_type=single_label, or leave it out")
    if stage.balanced and config.data.streaming:
        what = "counts the labels of all rows, which a stream does not know"
        yield Problem("stage.balanced", what, "stage.class_weights={...}, or data.streaming=false")
    if weighted and len(config.data.mix) > 1:
        yield Problem(f"stage.{weighted[0]}", "does not say which task its labels are of", "leave it out")
    for label, weight in stage.class_weights.items():
        if not 0 < weight < float("inf"):
            yield Problem(f"stage.class_weights.{label}", f"is {weight}", "a number greater than 0")
        if stage.labels and label not in stage.labels:
            yield Problem(f"stage.class_weights.{label}", "is none of stage.labels", "one of them")
    if stage.problem_type is ProblemType.regression and stage.labels:
        yield Problem("stage.labels", "has no meaning where a number is predicted", "stage.labels=[]")


def _reward(config: RunConfig, stage: RewardConfig) -> Iterator[Problem]:
    if stage.labels:
        yield Problem("stage.labels", "has no meaning for a reward model, which gives one number", "stage.labels=[]")
    key, weight = "stage.center_rewards_coefficient", stage.center_rewards_coefficient
    if not 0 <= weight < float("inf"):
        yield Problem(key, f"is {weight}", "0, or a number greater than 0, such as 0.01")


def _tag(config: RunConfig, stage: TagConfig) -> Iterator[Problem]:
    split = config.data.overlong is Overlong.split
    if not 0 <= stage.overlap < config.data.max_length and split:
        what = f"is {stage.overlap}, and a window is data.max_length={config.data.max_length} long"
        yield Problem("stage.overlap", what, "a number from 0 to less than that")
