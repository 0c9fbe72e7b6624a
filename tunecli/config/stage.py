"""The `stage` group: what is optimised."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class Turns(Enum):
    all = "all"
    last = "last"


@dataclass(kw_only=True, slots=True)
class StageConfig:
    name: str = MISSING


@dataclass(kw_only=True, slots=True)
class SFTConfig(StageConfig):
    """Supervised fine-tuning: next-token cross-entropy on the answers."""

    name: str = "sft"
    train_on_prompt: bool = False
    """Learn every token: the prompt's too, not only the assistant's."""
    turns: Turns = Turns.all
    """Learn all answers of a conversation, or only the last one."""


STAGE_SCHEMAS: dict[str, type[StageConfig]] = {"sft": SFTConfig}
