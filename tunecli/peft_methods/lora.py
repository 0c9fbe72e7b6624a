"""LoRA: low-rank updates of linear layers (Hu et al., 2021), and QLoRA when the base is quantised (Dettmers et al.,
2023). The layers are peft's own, injected into the plain transformers model.

Departs from peft's `get_peft_model`: no wrapper model, so forward and generate are the plain model's own.
"""

from __future__ import annotations

import peft
from peft import inject_adapter_in_model
from torch import nn

from tunecli.config.peft import LoraConfig


def inject(model: nn.Module, adapter_name: str, config: LoraConfig) -> None:
    """Add the update matrices to `model` in place; B starts at zero, so the outputs do not change."""
    inject_adapter_in_model(peft_config(config), model, adapter_name=adapter_name)


def peft_config(config: LoraConfig) -> peft.LoraConfig:
    everywhere = config.target_modules == ["all-linear"]
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if everywhere else list(config.target_modules),
        task_type="CAUSAL_LM",
    )
