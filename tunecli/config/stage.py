"""The `stage` group: what is optimised."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class StageConfig:
    name: str = MISSING


@dataclass(kw_only=True, slots=True)
class SFTConfig(StageConfig):
    """Supervised fine-tuning: next-token cross-entropy on the answers."""

    name: str = "sft"
    train_on_prompt: bool = False
    """Learn the prompt's tokens too, not only the assistant's."""


STAGE_SCHEMAS: dict[str, type[StageConfig]] = {"sft": SFTConfig}
