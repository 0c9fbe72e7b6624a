"""LoRA: low-rank updates of linear layers (Hu et al., 2021), and QLoRA when the base is quantised (Dettmers et al.,
2023). With rank-stabilised scaling (Kalajdzievski, 2023) and DoRA (Liu et al., 2024) as options. The layers are
peft's.

Departs from peft's `get_peft_model`: no wrapper model, so forward and generate are the plain model's own.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import LoraConfig, LoraInit
from tunecli.peft_methods.lora_start import Starts
from tunecli.peft_methods.targets import linear_targets


def peft_config(config: LoraConfig, model: PreTrainedModel) -> peft.LoraConfig:
    """B starts at zero, so the outputs do not change; other starts follow after injection, in `lora_start`.

    Raises:
        UserError: a target or a pattern is not in this model.
    """
    targets = linear_targets(model, config.target_modules)
    for key, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        _check_patterns(key, patterns, targets)
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights="gaussian" if config.init_lora_weights is LoraInit.gaussian else True,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
    )


def _check_patterns(key: str, patterns: Iterable[str], targets: list[str]) -> None:
    for pattern in patterns:
        if not any(re.match(rf"(.*\.)?({pattern})$", target) for target in targets):
            known = sorted({target.rpartition(".")[2] for target in targets})
            raise UserError(
                f"{pattern!r} is none of the layers that are adapted",
                where=key,
                fix=f"one of {', '.join(known)}, or a regular expression",
            )


def rate_factors(model: nn.Module, ratios: Mapping[str, float]) -> dict[str, float]:
    """LoRA+ (Hayou et al., 2024, arXiv:2402.12354): parameter name -> what its learning rate is multiplied by.

    As in the paper's code and peft's, those of B and, with DoRA, of the lengths are larger; A's is the base.

    Args:
        ratios: peft's name of an adapter -> B's learning rate over A's.
    """
    factors = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        for adapter, ratio in ratios.items():
            if adapter in parts and ("lora_B" in parts or parameter.ndim == 1):
                factors[name] = ratio
    return factors


def saved_on_plain_base(
    config: peft.LoraConfig, state: Mapping[str, Tensor], starts: Starts
) -> tuple[peft.LoraConfig, dict[str, Tensor]]:
    """A LoRA of twice the rank that does to the untouched base what this one does to one without `starts`:
    [B, -B0] [A; A0] = B A - B0 A0, at the same scale. Right with DoRA too, as both have the same sum of weights.

    Args:
        state: path of a layer + `.lora_A.weight` and the like -> tensor.
    """
    state = dict(state)
    for path, (a, b) in starts.items():
        down, up = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        state[down] = torch.cat([state[down], a.to(state[down])])
        state[up] = torch.cat([state[up], -b.to(state[up])], dim=1)
    config = copy.copy(config)
    grown = math.sqrt(2) if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, grown * config.lora_alpha
    config.rank_pattern = {pattern: 2 * r for pattern, r in config.rank_pattern.items()}
    config.alpha_pattern = {pattern: grown * alpha for pattern, alpha in config.alpha_pattern.items()}
    return config, state
