"""LoRA: low-rank updates of linear layers (Hu et al., 2021), and QLoRA when the base is quantised (Dettmers et al.,
2023). With rank-stabilised scaling (Kalajdzievski, 2023) and DoRA (Liu et al., 2024) as options. The layers are
peft's.

Departs from peft's `get_peft_model`: no wrapper model, so forward and generate are the plain model's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import peft
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import LoraConfig, LoraInit
from tunecli.peft_methods.targets import linear_targets

INIT = {LoraInit.default: True, LoraInit.gaussian: "gaussian"}


def peft_config(config: LoraConfig, model: PreTrainedModel) -> peft.LoraConfig:
    """B starts at zero, so the outputs do not change.

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
        init_lora_weights=INIT[config.init_lora_weights],
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
