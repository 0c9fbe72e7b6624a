"""What `stage: preference` gets wrong: values out of range, and options that the chosen loss does not read; see
`tunecli.config.checks`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

from tunecli.config.errors import Problem
from tunecli.config.run import RunConfig
from tunecli.config.stage import PolicyModel, PreferenceConfig, PreferenceLoss, ReferenceTime

L = PreferenceLoss
READ_BY: dict[str, tuple[PreferenceLoss, ...]] = {
    "label_smoothing": (L.cdpo, L.robust, L.exo),
    "gamma": (L.simpo,),
    "margin_weight": (L.dpo,),
    "desirable_weight": (L.kto,),
    "undesirable_weight": (L.kto,),
    "reference": tuple(loss for loss in L if PreferenceConfig(loss=loss).has_reference),
}
"""option -> the losses that read it"""


def preference_problems(config: RunConfig) -> Iterator[Problem]:
    stage = config.stage
    if not isinstance(stage, PreferenceConfig):
        return
    yield from _unread(stage)
    yield from _ranges(stage)
    yield from _batch(config, stage)
    yield from _evaluation(config)
    if stage.reference is ReferenceTime.cached and config.data.streaming:
        what = "is cached, and the rows of a stream are not known before training"
        yield Problem("stage.reference", what, "stage.reference=live, or data.streaming=false")
    usual = PreferenceConfig().max_target_length
    if stage.language_model is PolicyModel.causal_lm and stage.max_target_length != usual:
        fix = f"data.max_length, or stage.max_target_length={usual}"
        yield Problem("stage.max_target_length", "is for encoder-decoders (stage.language_model=seq2seq_lm)", fix)


def _unread(stage: PreferenceConfig) -> Iterator[Problem]:
    defaults = {field.name: field.default for field in fields(stage)}
    for name, losses in READ_BY.items():
        if stage.loss not in losses and getattr(stage, name) != defaults[name]:
            known = ", ".join(loss.value for loss in losses)
            back = "null" if defaults[name] is None else defaults[name]
            what = f"is not read by loss={stage.loss.value}, but by {known}"
            yield Problem(f"stage.{name}", what, f"stage.loss={losses[0].value}, or stage.{name}={back}")


def _ranges(stage: PreferenceConfig) -> Iterator[Problem]:
    smoothing = stage.label_smoothing
    if stage.beta is not None and not 0 < stage.beta < math.inf:
        yield Problem("stage.beta", f"is {stage.beta}", "a number greater than 0")
    if smoothing is not None and stage.loss is L.exo and not 0 < smoothing < 0.5:
        what = f"is {smoothing}; exo compares with labels that are never certain"
        yield Problem("stage.label_smoothing", what, "a number greater than 0 and below 0.5")
    elif smoothing is not None and not 0 <= smoothing < 0.5:
        yield Problem("stage.label_smoothing", f"is {smoothing}", "a number from 0 to less than 0.5")
    for name in ("gamma", "margin_weight", "desirable_weight", "undesirable_weight"):
        value = getattr(stage, name)
        if value is not None and not 0 <= value < math.inf:
            yield Problem(f"stage.{name}", f"is {value}", "a number, 0 or greater")
    if stage.language_model is PolicyModel.seq2seq_lm and stage.max_target_length < 2:
        yield Problem("stage.max_target_length", f"is {stage.max_target_length}", "2 or more")


def _batch(config: RunConfig, stage: PreferenceConfig) -> Iterator[Problem]:
    if stage.loss is L.kto and config.train.global_batch_size == 1:
        what = "is 1, and kto compares answers with those to other prompts of the same step"
        yield Problem("train.global_batch_size", what, "2 or more")


def _evaluation(config: RunConfig) -> Iterator[Problem]:
    """Of two answers none is the right one word for word."""
    for name, none in {**dict.fromkeys(("exact_match", "rouge", "bleu", "chrf"), 0), "choices": []}.items():
        if getattr(config.evaluation, name) != none:
            what = "compares with a right answer, and the rows of stage=preference have none"
            yield Problem(f"evaluation.{name}", what, f"evaluation.{name}={none}; evaluation.prompts shows answers")
