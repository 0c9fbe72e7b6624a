"""What stages that train language models on documents or templates get wrong; see `tunecli.config.checks`."""

from __future__ import annotations

from collections.abc import Iterator

from tunecli.config.cloze import parse_cloze
from tunecli.config.data import Overlong
from tunecli.config.errors import Problem
from tunecli.config.run import RunConfig
from tunecli.config.stage import LanguageModel, Objective, PretrainConfig, ProblemType, Task, VerbalizeConfig


def language_problems(config: RunConfig) -> Iterator[Problem]:
    yield from shot_problems(config)
    if isinstance(config.stage, PretrainConfig):
        yield from _pretrain(config, config.stage)
    if isinstance(config.stage, VerbalizeConfig):
        yield from _templates(config.stage)
        yield from _words(config, config.stage)
        yield from no_answers(config)
        if config.data.overlong is Overlong.split:
            what = "split would give each part the label of the whole"
            yield Problem("data.overlong", what, "data.overlong=truncate")


def shot_problems(config: RunConfig) -> Iterator[Problem]:
    """Of `data.shots`, whatever the stage is."""
    stage = config.stage
    if config.data.shots is None:
        return
    single = getattr(stage, "problem_type", ProblemType.single_label) is ProblemType.single_label
    if stage.reads is not Task.sequence_classification or not single:
        what = f"counts rows of each label, and stage={stage.name} has no one label for a row here"
        yield Problem("data.shots", what, "data.shots=null, or stage=verbalize or classify")
    if config.data.streaming:
        yield Problem("data.shots", "looks at all rows, and they stream", "data.streaming=false, or data.shots=null")
    if getattr(stage, "balanced", False):
        yield Problem(
            "stage.balanced", "has no meaning where data.shots gives each label as many rows", "leave it out"
        )


def _pretrain(config: RunConfig, stage: PretrainConfig) -> Iterator[Problem]:
    key = "stage.mask_probability"
    masked = stage.objective in (Objective.masked_lm, Objective.span_corruption)
    if not 0 < stage.mask_probability < 1:
        yield Problem(key, f"is {stage.mask_probability}", "a number greater than 0 and below 1")
    elif not masked and stage.mask_probability != PretrainConfig().mask_probability:
        fix = f"stage.objective=masked_lm, or {key}={PretrainConfig().mask_probability}"
        yield Problem(key, f"has no meaning for objective={stage.objective.value}", fix)
    key, usual = "stage.mean_span_length", PretrainConfig().mean_span_length
    if not stage.mean_span_length >= 1:
        yield Problem(key, f"is {stage.mean_span_length}", "a number of tokens, 1 or more")
    elif stage.objective is not Objective.span_corruption and stage.mean_span_length != usual:
        fix = f"stage.objective=span_corruption, or {key}={usual}"
        yield Problem(key, f"has no meaning for objective={stage.objective.value}", fix)
    if stage.task is not Task.causal_lm:
        yield from no_answers(config)


def _templates(stage: VerbalizeConfig) -> Iterator[Problem]:
    key = "stage.templates"
    if not stage.templates:
        yield Problem(key, "is empty", f"\"{key}=['{{text}} It was {{mask}}.']\"")
    if len(set(stage.templates)) < len(stage.templates):
        yield Problem(key, "has a template twice", "name each once")
    for i, text in enumerate(stage.templates):
        try:
            cloze = parse_cloze(text)
        except ValueError as error:
            yield Problem(f"{key}[{i}]", str(error), f"\"{key}=['{{text}} It was {{mask}}.']\"")
            continue
        if stage.language_model is LanguageModel.causal_lm and not cloze.ends_with_gap:
            what = f"{text!r} goes on after {{mask}}, and a causal model does not see what follows"
            yield Problem(f"{key}[{i}]", what, "{mask} at the end; stage.language_model=masked_lm for an encoder")


def _words(config: RunConfig, stage: VerbalizeConfig) -> Iterator[Problem]:
    key, words = "stage.verbalizer", [word.strip() for word in stage.verbalizer.values()]
    if not all(words):
        yield Problem(key, "has an empty word", "a word for each label")
    elif len(set(words)) < len(words):
        yield Problem(key, "has a word twice, and its labels could not be told apart", "another word for each label")
    if len(words) == 1:
        yield Problem(key, "is one label, and nothing is to be told apart", "a word for each label, or leave it out")
    if words and len({source.task for source in config.data.mix}) > 1:
        yield Problem(
            key, "is one list, and data.mix has several tasks", f"{key}={{}}, which takes the labels as words"
        )
    if config.data.streaming and not words:
        fix = f"{key}={{positive: great, negative: terrible}}, or data.streaming=false"
        yield Problem(key, "is empty, and the labels of a stream are not known before it ends", fix)


def no_answers(config: RunConfig) -> Iterator[Problem]:
    """For a stage whose model is not asked to generate."""
    nothing: dict[str, object] = {**dict.fromkeys(("exact_match", "rouge", "bleu", "chrf"), 0)}
    for name, none in (nothing | {"choices": [], "prompts": []}).items():
        if getattr(config.evaluation, name) != none:
            what = f"is for models that generate, and stage={config.stage.name} trains none here"
            yield Problem(f"evaluation.{name}", what, f"evaluation.{name}={none}")
