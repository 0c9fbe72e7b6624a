"""The `peft` group: an ordered mapping of names to methods; no entry means full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class PeftConfig:
    method: str = MISSING


@dataclass(kw_only=True, slots=True)
class LoraConfig(PeftConfig):
    """Low-rank adaptation (Hu et al., 2021). Field names are peft's."""

    method: str = "lora"
    r: int = 16
    """Rank of the update."""
    lora_alpha: float = 32
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names (or name endings) of linear layers; `[all-linear]` is every one but the head."""


@dataclass(kw_only=True, slots=True)
class BitFitConfig(PeftConfig):
    """Train the biases only (Ben Zaken et al., 2022)."""

    method: str = "bitfit"


PEFT_SCHEMAS: dict[str, type[PeftConfig]] = {"lora": LoraConfig, "bitfit": BitFitConfig}

NOT_TRAINABLE_YET = frozenset({"bitfit"})
"""Methods that compose but are refused by `checks.py` until their tuner exists."""
