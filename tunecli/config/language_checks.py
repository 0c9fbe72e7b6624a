"""What stages that train language models on documents or templates get wrong; see `tunecli.config.checks`."""

from __future__ import annotations

from collections.abc import Iterator

from tunecli.config.errors import Problem
from tunecli.config.run import RunConfig
from tunecli.config.stage import Objective, PretrainConfig, Task


def language_problems(config: RunConfig) -> Iterator[Problem]:
    if isinstance(config.stage, PretrainConfig):
        yield from _pretrain(config, config.stage)


def _pretrain(config: RunConfig, stage: PretrainConfig) -> Iterator[Problem]:
    key, masked = "stage.mask_probability", stage.objective is Objective.masked_lm
    if not 0 < stage.mask_probability < 1:
        yield Problem(key, f"is {stage.mask_probability}", "a number greater than 0 and below 1")
    elif not masked and stage.mask_probability != PretrainConfig().mask_probability:
        fix = f"stage.objective=masked_lm, or {key}={PretrainConfig().mask_probability}"
        yield Problem(key, f"has no meaning for objective={stage.objective.value}", fix)
    if stage.task is Task.masked_lm:
        yield from no_answers(config)


def no_answers(config: RunConfig) -> Iterator[Problem]:
    """For a stage whose model is not asked to generate."""
    for name, none in {"exact_match": 0, "choices": [], "prompts": []}.items():
        if getattr(config.evaluation, name) != none:
            what = f"is for models that generate, and stage={config.stage.name} trains none here"
            yield Problem(f"evaluation.{name}", what, f"evaluation.{name}={none}")
