"""Parameter-efficient methods: a module each, a row in `METHODS`, a schema in `config/peft.py`, a YAML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tunecli.peft_methods import lora

METHODS: dict[str, Callable[[nn.Module, str, Any], None]] = {
    "lora": lora.inject,
}
"""method -> `inject(model, adapter_name, config)`, which adds trainable parameters to the model in place"""
