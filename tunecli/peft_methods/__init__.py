"""Parameter-efficient methods: a module each, a row in `METHODS`, a schema and facts in `config/peft.py`, a YAML.

Every method is a tuner of peft's kind that is injected into one plain transformers model: peft's own layers where
they are right, ours where they are not. So forward, generate, cache, padding and checkpointing are the plain model's
own, several methods are several injections, and each is saved as a peft checkpoint.
"""

# ruff: noqa: E402
from __future__ import annotations

from tunecli.engine.imports import import_bitsandbytes

import_bitsandbytes()  # before peft does

from collections.abc import Callable
from typing import Any

import peft
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecli.engine.step_hook import StepHook
from tunecli.peft_methods import (
    adalora,
    bitfit,
    bottleneck,
    freeze,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    oft,
    p_tuning,
    prefix,
    prompt_tuning,
    vera,
)

METHODS: dict[str, Callable[[Any, PreTrainedModel], peft.PeftConfig]] = {
    "lora": lora.peft_config,
    "adalora": adalora.peft_config,
    "vera": vera.peft_config,
    "loha": loha.peft_config,
    "lokr": lokr.peft_config,
    "oft": oft.peft_config,
    "ia3": ia3.peft_config,
    "ln_tuning": ln_tuning.peft_config,
    "bitfit": bitfit.peft_config,
    "houlsby": bottleneck.peft_config,
    "pfeiffer": bottleneck.peft_config,
    "parallel": bottleneck.peft_config,
    "prefix_tuning": prefix.peft_config,
    "p_tuning_v2": prefix.peft_config,
    "freeze": freeze.peft_config,
}
"""method -> what peft is to inject into this model: `peft_config(config, model)`"""

WITH_VIRTUAL_TOKENS: dict[
    str, Callable[[Any, PreTrainedModel, PreTrainedTokenizerBase | None, list[int]], peft.PeftConfig]
] = {
    "prompt_tuning": prompt_tuning.peft_config,
    "p_tuning": p_tuning.peft_config,
}
"""The same for methods that put tokens of their own among those of the input: `peft_config(config, model, tokenizer,
ids of these tokens)`"""

STEP_HOOKS: dict[str, Callable[[PreTrainedModel, str, Any, int], StepHook]] = {
    "adalora": adalora.RankAllocator,
}
"""method that does something in every step -> what does it: `hook(model, adapter, config, num_steps)`"""
