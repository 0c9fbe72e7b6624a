"""Tokenizer, rows and labels, and what training draws from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunecli.config.cloze import parse_cloze
from tunecli.config.data import Overlap
from tunecli.config.run import RunConfig
from tunecli.config.stage import (
    HeadConfig,
    Objective,
    PretrainConfig,
    ProblemType,
    RewardConfig,
    Rows,
    StageConfig,
    Subwords,
    Task,
    Turns,
    VerbalizeConfig,
)
from tunecli.data.corruption import sentinels_of
from tunecli.data.feed import Feed, Shuffled, stream
from tunecli.data.labels import Labels, run_labels
from tunecli.data.left_out import LeftOut
from tunecli.data.masking import mask_of
from tunecli.data.mixture import Mixture, build, shares
from tunecli.data.shots import few
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding
from tunecli.data.verbalizing import Verbalizer
from tunecli.evaluation.answers import check_choices
from tunecli.models.load import (
    check_kind,
    load_tokenizer,
    pad_apart,
    stop_tokens,
)
from tunecli.peft_methods.token_ids import places_of_virtual_tokens


@dataclass(frozen=True, slots=True)
class Data:
    tokenizer: PreTrainedTokenizerBase
    train: Mixture | None
    """None with `data.streaming`: nothing is known of the examples before they come"""
    validation: Mixture | None
    labels: Labels | None = None
    """of a model with a head for them"""


def prepare_data(config: RunConfig, *, show_progress: bool) -> Data:
    """Tokenizer and tokenised data, from the cache where they are there already."""
    check_kind(config.model, config.stage.task)
    tokenizer = load_tokenizer(config.model)
    if isinstance(config.stage, RewardConfig):
        pad_apart(tokenizer, stop_tokens(config.model))
    if config.stage.task is Task.masked_lm:
        mask_of(tokenizer, _as_causal(config.stage))
    sentinels_for(config, tokenizer)
    train, validation = build(config.data, tokenizer, encoding_of(config, tokenizer), show_progress=show_progress)
    if validation is not None and config.evaluation.choices:
        check_choices(validation, tokenizer, config.evaluation.choices)
    stage = config.stage
    labels = None
    if isinstance(stage, HeadConfig | VerbalizeConfig):
        labels = run_labels(config.data, stage, train, validation)
    if train is not None and config.data.shots is not None:
        train = few(train, config.data.shots, config.seed)
    if labels is not None and isinstance(stage, VerbalizeConfig):
        Verbalizer(TextEncoder(tokenizer), encoding_of(config, tokenizer)).check(labels.by_task)
    return Data(tokenizer, train, validation, labels)


def _as_causal(stage: StageConfig) -> str:
    """Words that have a causal model do what the stage has a masked one do."""
    if not isinstance(stage, VerbalizeConfig):
        return "stage.objective=causal_lm"
    gaps_end = all(parse_cloze(template).ends_with_gap for template in stage.templates)
    templates = "" if gaps_end else " \"stage.templates=['{text} It was {mask}.']\", as the gap has to be at the end"
    return f"stage.language_model=causal_lm{templates}"


def encoding_of(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Encoding:
    """What tokenisation depends on besides the rows and the tokenizer, whose unused tokens may be virtual ones."""
    data, stage = config.data, config.stage
    return Encoding(
        task=stage.task,
        max_length=data.max_length,
        max_target_length=getattr(stage, "max_target_length", 0),
        overlong=data.overlong,
        truncation_side=data.truncation_side,
        train_on_prompt=getattr(stage, "train_on_prompt", False),
        turns=getattr(stage, "turns", Turns.all),
        labels=tuple(getattr(stage, "labels", ())),
        problem_type=getattr(stage, "problem_type", ProblemType.single_label),
        label_subwords=getattr(stage, "label_subwords", Subwords.first),
        overlap=getattr(stage, "overlap", 0),
        rows=stage.reads if isinstance(stage.reads, Rows) else None,
        templates=tuple(getattr(stage, "templates", ())),
        verbalizer=dict(getattr(stage, "verbalizer", {})),
        system=data.system,
        system_prompt=data.system_prompt,
        thinking=data.thinking,
        chat_template_kwargs=dict(data.chat_template_kwargs),
        **places_of_virtual_tokens(config.peft, tokenizer, adapter_column=data.adapter_column),
    )


def build_feed(config: RunConfig, data: Data, left_out: LeftOut) -> Feed:
    """What training draws its examples from."""
    if data.train is not None:
        left_out.write(data.train.left_out + (data.validation.left_out if data.validation else []))
        return Shuffled(data.train, config.seed, shares(config.data, np.diff(data.train.starts).tolist()))
    keep_apart = data.validation is not None and config.data.overlap is Overlap.drop
    return stream(
        config.data,
        data.tokenizer,
        encoding_of(config, data.tokenizer),
        seed=config.seed,
        exclude=data.validation.contents if data.validation is not None and keep_apart else np.zeros(0, np.int64),
        report=left_out.write,
    )


def sentinels_for(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Enough for the longest text with the objective span_corruption; none with others."""
    stage = config.stage
    if not isinstance(stage, PretrainConfig) or stage.objective is not Objective.span_corruption:
        return []
    shares = {"density": stage.mask_probability, "mean_span": stage.mean_span_length}
    return sentinels_of(tokenizer, config.data.max_length, **shares)
