"""What `stage=label` gets wrong, and what has no meaning for it; see `tunecli.config.checks`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tunecli.config.data import DataConfig
from tunecli.config.errors import Problem, UserError
from tunecli.config.evaluation import EvaluationConfig
from tunecli.config.judge_checks import judge_problems
from tunecli.config.judge_files import constitution_of
from tunecli.config.model import ModelConfig
from tunecli.config.run import RunConfig
from tunecli.config.stage import LabelConfig, Labelling
from tunecli.config.train import TrainConfig

DRAWS = ("num_samples", "temperature", "max_new_tokens")
USED: dict[Labelling, tuple[str, ...]] = {
    Labelling.preference: (*DRAWS, "num_pairs", "drop_ties"),
    Labelling.given_pairs: (*DRAWS, "drop_ties"),
    Labelling.best_of_n: DRAWS,
    Labelling.revise: ("temperature", "max_new_tokens", "num_revisions", "constitution"),
}
"""mode -> the values of the stage that it goes by; that of drawing is there for given pairs too, as `model` is"""
OF_MODE = tuple(dict.fromkeys(name for names in USED.values() for name in names))
OF_TRAINING = ("shots", "adapter_column", "streaming")
"""Values of `data` that have no meaning where nothing is trained."""


def label_problems(config: RunConfig) -> Iterator[Problem]:
    if not isinstance(config.stage, LabelConfig):
        if config.judge is not None:
            what = f"has nothing to judge in stage={config.stage.name}"
            yield Problem("judge", what, "leave it out; tune judge tries one")
        return
    yield from _judge(config, config.stage)
    yield from _values(config.stage)
    yield from _idle(config)


def _judge(config: RunConfig, stage: LabelConfig) -> Iterator[Problem]:
    if stage.mode is Labelling.revise:
        if config.judge is not None:
            what = "is not asked with stage.mode=revise: the model criticises itself"
            yield Problem("judge", what, "a recipe without one, such as recipe=revise_smollm2")
        return
    if config.judge is None:
        yield Problem("judge", "none is chosen, and stage=label needs one", "+judge=local judge.path=RUN, say")
        return
    yield from judge_problems(config.judge)


def _values(stage: LabelConfig) -> Iterator[Problem]:
    usual = LabelConfig()
    for name in OF_MODE:
        if name not in USED[stage.mode] and getattr(stage, name) != getattr(usual, name):
            back = getattr(usual, name)
            shown = "null" if back is None else str(back).lower()
            yield Problem(
                f"stage.{name}", f"does nothing with stage.mode={stage.mode.value}", f"stage.{name}={shown}"
            )
    for name in ("num_samples", "num_pairs", "max_new_tokens", "num_revisions", "prompts_together"):
        value = getattr(stage, name)
        if value is not None and value <= 0:
            yield Problem(f"stage.{name}", f"is {value}", "a number greater than 0")
    if not 0 <= stage.temperature < float("inf"):
        yield Problem("stage.temperature", f"is {stage.temperature}", "a number 0 or greater")
    if stage.mode in (Labelling.preference, Labelling.best_of_n):
        if stage.num_samples == 1:
            yield Problem("stage.num_samples", "is 1, and nothing is to be compared", "stage.num_samples=2")
        if stage.temperature == 0:
            yield Problem("stage.temperature", "is 0, which draws the same answer each time", "stage.temperature=1")
    if stage.mode is Labelling.revise:
        yield from _revisions(stage)


def _revisions(stage: LabelConfig) -> Iterator[Problem]:
    try:
        number = len(constitution_of(stage.constitution))
    except UserError as error:
        yield Problem("stage.constitution", f"{error.where}: {error.what}", error.fix)
        return
    if stage.num_revisions > number:
        what = f"is {stage.num_revisions}, and the constitution has {number} principles"
        yield Problem("stage.num_revisions", what, f"stage.num_revisions={number}")


def _idle(config: RunConfig) -> Iterator[Problem]:
    """What is about training."""
    if config.peft:
        yield Problem("peft", "stage=label trains nothing", "peft=full; model.path=RUN names what is to answer")
    usual = {"train": dataclasses.asdict(TrainConfig()), "evaluation": dataclasses.asdict(EvaluationConfig())}
    for section, values in usual.items():
        for name, value in values.items():
            if getattr(getattr(config, section), name) != value:
                yield Problem(f"{section}.{name}", "does nothing, as stage=label trains nothing", "leave it out")
    plain = DataConfig(path=None)
    for name in OF_TRAINING:
        if getattr(config.data, name) != getattr(plain, name):
            back = "null" if getattr(plain, name) is None else "false"
            yield Problem(f"data.{name}", "has no meaning with stage=label", f"data.{name}={back}")
    if config.model.gradient_checkpointing != ModelConfig().gradient_checkpointing:
        yield Problem("model.gradient_checkpointing", "does nothing without training", "leave it out")
