"""The model with its trainable parameters, behind the fastest exact forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tunecli.assembly.data import Data
from tunecli.assembly.ppo import build_value_model, described
from tunecli.config.model import Attention
from tunecli.config.peft import without_head
from tunecli.config.run import RunConfig
from tunecli.config.stage import Advantage, PPOConfig, ProblemType, Rows, ValueFunction
from tunecli.config.train import Precision
from tunecli.engine.batch import Batch
from tunecli.engine.console import Display
from tunecli.engine.precision import DTYPES
from tunecli.engine.pull import PullToStart
from tunecli.engine.step_hook import StepHook
from tunecli.models.classifier import Classifier
from tunecli.models.load import (
    Head,
    load_model,
    weight_dtype,
)
from tunecli.models.policy import ONEDNN_MULTIPLE, Policy, add_value_head
from tunecli.models.self_test import Wrapped, choose_policy
from tunecli.models.shared_beginning import shares_beginnings
from tunecli.peft_methods.by_row import route_rows
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.injection import adapter_name, leave_casts_to_autocast
from tunecli.peft_methods.targets import is_under, task_heads

COMPARED = (Rows.pairs, Rows.judged, Rows.feedback)
"""Rows that may be pairs of answers."""


def build_policy(
    config: RunConfig,
    data: Data,
    *,
    precision: Precision,
    device: torch.device,
    display: Display,
    batches: Callable[[Wrapped], Iterator[Batch]],
    starts: Mapping[str, Path],
) -> Wrapped:
    """The model with its trainable parameters, behind the fastest exact forward.

    Args:
        batches: gives what a method may look at before it starts.
        starts: entry -> peft folder that it starts from.
    """
    if config.model.trust_remote_code:
        display.note(f"running the Python code that comes with {config.model.path} (model.trust_remote_code=true)")
    stored = weight_dtype(config.model, DTYPES[precision], frozen=bool(config.peft))
    task = config.stage.task
    lm = load_model(config.model, dtype=stored, device=device, task=task, head=_head(config, data))
    if task.has_labels:
        lm.config.pad_token_id = data.tokenizer.pad_token_id
    stock = lm.config._attn_implementation
    verdict = choose_policy(lm, config.model.attention, task)
    values = None
    if isinstance(config.stage, PPOConfig) and config.stage.value is ValueFunction.model:
        attention = config.model.attention if verdict.policy.packed else Attention.padded
        values = build_value_model(config, attention=attention, precision=precision, device=device)
        if verdict.policy.packed and not values.packed:  # they read the same batches
            lm.set_attn_implementation(stock)
            verdict = choose_policy(lm, Attention.padded, task)
            verdict = replace(verdict, note="batches are padded by length: the value model cannot read packed ones")
    if verdict.note:
        display.note(verdict.note, style="yellow")
    if config.stage.reads in COMPARED:
        _read_prompts_once(verdict.policy, display)
    inject(
        lm,
        config.peft,
        seed=config.seed,
        tokenizer=data.tokenizer,
        batches=partial(batches, verdict.policy),
        starts=starts,
    )
    if values is not None:
        assert isinstance(verdict.policy, Policy)
        verdict.policy.value_model = values
        display.note(described(config, values))
    elif isinstance(config.stage, PPOConfig) and config.stage.advantage is Advantage.gae:
        add_value_head(verdict.policy)
    if config.data.adapter_column is not None:
        route_rows(lm, [adapter_name(name) for name in without_head(config.peft)])
    if precision is not Precision.fp32:
        leave_casts_to_autocast(lm)
        verdict.policy.multiple = ONEDNN_MULTIPLE if device.type == "cpu" else 1
    return verdict.policy


def _read_prompts_once(policy: Wrapped, display: Display) -> None:
    """What the answers of a pair begin with, where that is exact."""
    if not policy.packed or not isinstance(policy, Policy | Classifier):
        return
    reason = shares_beginnings(policy)
    policy.trees = not reason
    if reason:
        display.note(f"the prompt of a pair is computed twice, once for each answer: {reason}", style="yellow")


def head_factors(policy: Wrapped, config: RunConfig) -> dict[str, float]:
    """Parameter of the head, or of the value model -> what its learning rate is multiplied by. Where that is 1 too: a
    value model may have adapters of the same names as the policy, whose factors are none of its own."""
    rate = getattr(config.stage, "head_learning_rate", None)
    factor = 1.0 if rate is None else rate / config.train.learning_rate
    return {name: factor for name, _ in policy.named_parameters() if is_under(name, _heads(policy, config))}


def pull_hooks(config: RunConfig, policy: Wrapped, optimizer: torch.optim.Optimizer) -> list[StepHook]:
    if not config.train.pull_to_start:
        return []
    heads = _heads(policy, config)
    spared = {parameter for name, parameter in policy.named_parameters() if is_under(name, heads)}
    return [PullToStart(optimizer, config.train.pull_to_start, spared)]


def _heads(policy: Wrapped, config: RunConfig) -> list[str]:
    """What is trained beside the model itself."""
    if config.stage.task.has_labels:
        return [f"lm.{name}" for name in task_heads(policy.lm)]
    return ["value_head", "value_model"]


def _head(config: RunConfig, data: Data) -> Head | None:
    if data.labels is None or not config.stage.task.has_labels:
        return None
    problem = getattr(config.stage, "problem_type", ProblemType.single_label)
    return Head(labels=data.labels.names, problem_type=problem, seed=config.seed)
