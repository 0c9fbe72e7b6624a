"""What stage `ppo` gets wrong, and its fit to the rest; see `tunecli.config.checks`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from tunecli.config.data_files import is_local
from tunecli.config.errors import Problem
from tunecli.config.model import Quantization
from tunecli.config.model_path import is_folder_name
from tunecli.config.run import RunConfig
from tunecli.config.stage import (
    Advantage,
    KLController,
    KLEstimator,
    KLPlace,
    PolicyModel,
    PPOConfig,
    ValueFunction,
)
from tunecli.config.virtual import virtual_ids

ABOVE_0 = (
    *("rollout_batch_size", "num_samples", "num_ppo_epochs", "max_new_tokens", "temperature", "top_p", "kl_target"),
    *("kl_horizon", "score_clip", "clip_range", "value_clip_range", "value_learning_rate", "early_stop_kl"),
)
NOT_BELOW_0 = ("min_new_tokens", "top_k", "kl_coef", "missing_eos_penalty", "vf_coef", "entropy_coef")
SHARES = ("gamma", "lam", "top_p")
"""At most 1."""
OF_VALUES = ("gamma", "lam", "value_clip_range", "vf_coef", "value", "value_path", "value_learning_rate")
"""Idle where there are no values."""
OF_CONTROLLER = ("kl_target", "kl_horizon")
RIGHT_ANSWERS = ("exact_match", "rouge", "bleu", "chrf", "choices", "prompts")


def ppo_problems(config: RunConfig) -> Iterator[Problem]:
    if not isinstance(config.stage, PPOConfig):
        return
    yield from _numbers(config.stage)
    yield from _units(config, config.stage)
    yield from _idle(config.stage)
    yield from _value_model(config, config.stage)
    yield from _data(config)
    yield from _dropout(config)


def _numbers(stage: PPOConfig) -> Iterator[Problem]:
    for name in (*ABOVE_0, *NOT_BELOW_0, "gamma", "lam"):
        value = getattr(stage, name)
        if value is None:
            continue
        above = name in ABOVE_0
        if not math.isfinite(value) or value < 0 or (above and value == 0) or (name in SHARES and value > 1):
            most = " and at most 1" if name in SHARES else ""
            demand = "greater than 0" if above else "0 or greater"
            yield Problem(f"stage.{name}", f"is {value}", f"a number {demand}{most}")
    if stage.min_new_tokens > stage.max_new_tokens:
        what = f"is {stage.min_new_tokens}, more than stage.max_new_tokens={stage.max_new_tokens}"
        yield Problem("stage.min_new_tokens", what, f"stage.min_new_tokens={stage.max_new_tokens} or less")


def _units(config: RunConfig, stage: PPOConfig) -> Iterator[Problem]:
    size, step = stage.rollout_batch_size, config.train.global_batch_size
    if step > 0 and size % step:
        what = f"is {size} answers, which are no whole steps of train.global_batch_size={step}"
        yield Problem("stage.rollout_batch_size", what, f"stage.rollout_batch_size={max(size // step, 1) * step}")
    if stage.num_samples > 0 and size % stage.num_samples:
        what = f"is {size} answers, which are no whole prompts of stage.num_samples={stage.num_samples}"
        fix = f"stage.rollout_batch_size={-(-size // stage.num_samples) * stage.num_samples}"
        yield Problem("stage.rollout_batch_size", what, fix)
    if stage.advantage is not Advantage.gae and stage.num_samples < 2:
        what = f"is {stage.num_samples}, and advantage={stage.advantage.value} compares the answers to a prompt"
        yield Problem("stage.num_samples", what, "stage.num_samples=4")
    processes = config.launch.num_processes or 1
    if 0 < size < processes:
        what = f"{size} answers cannot give each of {processes} processes one"
        yield Problem("stage.rollout_batch_size", what, f"stage.rollout_batch_size={processes}")


def _idle(stage: PPOConfig) -> Iterator[Problem]:
    given = [name for name in (*OF_VALUES, *OF_CONTROLLER) if getattr(stage, name) != _default(name)]
    for name in given:
        default = _default(name)
        default = "null" if default is None else default.value if isinstance(default, Enum) else default
        if name in OF_VALUES and stage.advantage is not Advantage.gae:
            what = f"does nothing with advantage={stage.advantage.value}, which has no values"
            yield Problem(f"stage.{name}", what, f"stage.{name}={default}, or stage.advantage=gae")
        if name in OF_CONTROLLER and stage.kl_controller is KLController.fixed:
            what = "does nothing with kl_controller=fixed"
            yield Problem(f"stage.{name}", what, f"stage.kl_controller=adaptive, or stage.{name}={default}")
    if stage.kl_in is KLPlace.loss and stage.kl_estimator is KLEstimator.k1 and stage.kl_coef:
        what = "k1 in the loss has no gradient on average"
        yield Problem("stage.kl_estimator", what, "stage.kl_estimator=k3, or stage.kl_in=reward")
    if stage.kl_controller is KLController.adaptive and stage.kl_coef == 0:
        yield Problem("stage.kl_coef", "is 0, which the controller can only multiply", "stage.kl_coef=0.05")


def _value_model(config: RunConfig, stage: PPOConfig) -> Iterator[Problem]:
    path = stage.value_path
    if stage.advantage is not Advantage.gae:
        return
    if stage.value is ValueFunction.head:
        if path is not None:
            yield Problem("stage.value_path", "does nothing with value=head", "stage.value=model")
        return
    if path is not None and _is_missing(path):
        yield Problem("stage.value_path", f"{path} does not exist", "PATH of what exists, or stage.value_path=null")
    if path is None and config.model.quantization is not Quantization.none:
        what = f"stands for {config.model.path}, which is trained in full as a value model and cannot be quantised"
        yield Problem("stage.value_path", what, "PATH of a run of stage=reward with adapters, or stage.value=head")
    if stage.language_model is PolicyModel.seq2seq_lm:
        what = "a value model reads what a decoder reads, and this policy is an encoder-decoder"
        yield Problem("stage.value", what, "stage.value=head")
    if config.model.device_map is not None:
        what = "a value model lies on one device, and model.device_map spreads the policy"
        yield Problem("stage.value", what, "stage.value=head, or model.device_map=null")
    if named := ", ".join(virtual_ids(config.peft)):
        what = f"a value model reads the policy's tokens, and those of {named} mean nothing to it"
        yield Problem("stage.value", what, "stage.value=head, or another peft")


def _is_missing(path: str) -> bool:
    named = is_local(path) or (not path.startswith("builtin:") and is_folder_name(path))
    return named and not Path(path).expanduser().exists()


def _dropout(config: RunConfig) -> Iterator[Problem]:
    """With it the policy that is trained would not be the one that drew the answers."""
    for name, method in config.peft.items():
        for field in fields(method):
            if "dropout" in field.name and getattr(method, field.name):
                key = f"peft.{name}.{field.name}"
                yield Problem(key, "is set, and stage=ppo trains without dropout", f"{key}=0")


def _default(name: str) -> Any:
    found: Field = next(field for field in fields(PPOConfig) if field.name == name)
    return None if found.default is MISSING else found.default


def _data(config: RunConfig) -> Iterator[Problem]:
    for name in RIGHT_ANSWERS:
        if value := getattr(config.evaluation, name):
            none = "[]" if isinstance(value, list) else "0"
            what = "is not for stage=ppo, which has an evaluation of its own: the score of held-out prompts"
            yield Problem(f"evaluation.{name}", what, f"evaluation.{name}={none}")
    if config.data.adapter_column is not None:
        what = "has the adapters of a model trained on different rows, which stage=ppo does not do"
        yield Problem("data.adapter_column", what, "data.adapter_column=null")
    if config.data.shots is not None:
        yield Problem("data.shots", "counts examples of labels, and prompts have none", "data.shots=null")
