"""Adding the methods of a run to one plain model.

Several methods stand in the order of the `peft` group: each wraps what the ones before it left, so the first is next
to the base. What each of them is put into is looked up in the plain model, before any is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.errors import ConfigError, Problem, UserError
from tunecli.config.peft import LoraConfig, PeftConfig
from tunecli.engine.batch import Batch
from tunecli.engine.step_hook import StepHook
from tunecli.peft_methods import METHODS, STEP_HOOKS, WITH_VIRTUAL_TOKENS, lora, lora_start
from tunecli.peft_methods.freeze import check_apart
from tunecli.peft_methods.injection import activate, adapter_name, add
from tunecli.peft_methods.saving import load_adapter, saved_config
from tunecli.peft_methods.token_ids import token_ids


def inject(
    model: PreTrainedModel,
    methods: Mapping[str, PeftConfig],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batches: Callable[[], Iterator[Batch]] | None = None,
    starts: Mapping[str, Path] | None = None,
) -> None:
    """Freeze `model` and add every method to it, all active. Without methods it is trained in full.

    The new parameters are fp32 and start from `seed` alone, with EVA from `batches`, or from a checkpoint.

    Args:
        tokenizer: of the words that virtual tokens start as; None: they start as random numbers.
        batches: gives those that training begins with, the same on every rank.
        starts: entry -> peft folder, for entries with `init_from`; those with `freeze` are not trained.

    Raises:
        UserError: methods found nothing in this model to attach to, all of them at once; or a checkpoint or a start
            does not fit it.
    """
    starts = starts or {}
    if homeless := [name for name, method in methods.items() if method.init_from and name not in starts]:
        raise ValueError(f"no folder was given of what {', '.join(homeless)} start from")
    if not methods:
        model.requires_grad_(True)
        return
    model.requires_grad_(False)
    ids = token_ids(methods, tokenizer)
    new = {name: method for name, method in methods.items() if name not in starts}
    configs = _peft_configs(new, model, tokenizer, ids)
    partial = [name for name, method in methods.items() if method.method == "freeze" and not method.freeze]
    check_apart({name: configs[name] if name in configs else saved_config(starts[name]) for name in partial})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, method in methods.items():
            if name in starts:
                trained = not method.freeze
                load_adapter(model, starts[name], adapter_name(name), trained=trained, virtual=ids.get(name))
                continue
            add(model, adapter_name(name), configs[name])
            with _errors_of(name, method):
                _start(model, name, method, batches)
    activate(model, map(adapter_name, methods))


@contextmanager
def trained_off(model: nn.Module, methods: Mapping[str, PeftConfig]) -> Iterator[None]:
    """Only frozen entries are on meanwhile. That is the model before the first step of training, unless a trained
    entry has `init_from` too: those weights have changed since."""
    activate(model, (adapter_name(name) for name, method in methods.items() if method.freeze))
    try:
        yield
    finally:
        activate(model, map(adapter_name, methods))


def _peft_configs(
    methods: Mapping[str, PeftConfig],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    ids: Mapping[str, list[int]],
) -> dict[str, peft.PeftConfig]:
    configs: dict[str, peft.PeftConfig] = {}
    refusals: list[UserError] = []
    for name, method in methods.items():
        try:
            with _errors_of(name, method):
                configs[name] = _peft_config(method, model, tokenizer, ids.get(name, []))
        except UserError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise ConfigError([Problem(error.where, error.what, error.fix) for error in refusals])
    return configs


def _peft_config(
    config: PeftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, token_ids: list[int]
) -> peft.PeftConfig:
    if config.method in WITH_VIRTUAL_TOKENS:
        return WITH_VIRTUAL_TOKENS[config.method](config, model, tokenizer, token_ids)
    return METHODS[config.method](config, model)


@contextmanager
def _errors_of(name: str, method: PeftConfig) -> Iterator[None]:
    """Put the entry's place in the configuration in front of the fields that an error and its fix name."""
    fields = "|".join(field.name for field in dataclasses.fields(method))
    try:
        yield
    except UserError as error:
        fix = re.sub(rf"(?<![\w.])(?=({fields})=)", f"peft.{name}.", error.fix)
        raise UserError(error.what, where=f"peft.{name}.{error.where}", fix=fix) from error


def _start(
    model: PreTrainedModel, name: str, method: PeftConfig, batches: Callable[[], Iterator[Batch]] | None
) -> None:
    if isinstance(method, LoraConfig):
        adapter = adapter_name(name)
        starts = lora_start.start(model, adapter, method.init_lora_weights, batches)
        model.lora_starts = model.__dict__.get("lora_starts", {}) | ({adapter: starts} if starts else {})


def step_hooks(model: PreTrainedModel, methods: Mapping[str, PeftConfig], num_steps: int) -> list[StepHook]:
    """What the methods in `model` do in every step of a run of `num_steps`."""
    return [
        STEP_HOOKS[config.method](model, adapter_name(name), config, num_steps)
        for name, config in methods.items()
        if config.method in STEP_HOOKS and not config.freeze
    ]


def rate_factors(model: nn.Module, methods: Mapping[str, PeftConfig]) -> dict[str, float]:
    """Parameter name -> what its learning rate is multiplied by, where that is not 1."""
    ratios = {
        adapter_name(name): config.loraplus_lr_ratio
        for name, config in methods.items()
        if isinstance(config, LoraConfig) and config.loraplus_lr_ratio != 1
    }
    return lora.rate_factors(model, ratios)
