"""The root of a configuration: what `recipes/*.yaml` compose into and `config.yaml` in a run directory holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from omegaconf import MISSING, OmegaConf

from tunecli.config.data import DataConfig
from tunecli.config.evaluation import EvaluationConfig
from tunecli.config.judge import JudgeConfig
from tunecli.config.launch import LaunchConfig
from tunecli.config.model import ModelConfig
from tunecli.config.peft import HEAD, FreezeConfig, PeftConfig
from tunecli.config.reward import RewardEntry
from tunecli.config.stage import StageConfig
from tunecli.config.train import TrainConfig


@dataclass(kw_only=True, slots=True)
class RunConfig:
    recipe: str = MISSING
    """Name of the recipe, filled in by the launcher."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    peft: dict[str, PeftConfig] = field(default_factory=dict)
    stage: StageConfig = field(default_factory=StageConfig)
    reward: dict[str, RewardEntry] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    judge: JudgeConfig | None = None
    """Who says which answers are better; empty where nothing is judged."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    seed: int = 0
    output_dir: str | None = None
    """The run directory itself; empty: `outputs/<recipe>/<time>`."""


def micro_batch_tokens(config: RunConfig) -> int | None:
    """Tokens per micro-batch; None where `train.micro_batch_size` counts examples instead."""
    if config.train.micro_batch_size is not None:
        return None
    return config.train.micro_batch_tokens or max(config.data.max_length, 2048)


def with_head(config: RunConfig) -> RunConfig:
    """With an entry of `peft` that trains the model's head, where it has one and other methods train the rest."""
    if not config.peft or HEAD in config.peft or not config.stage.task.has_labels:
        return config
    return replace(config, peft=config.peft | {HEAD: FreezeConfig(head=True)})


def to_yaml(config: RunConfig) -> str:
    """What `config.yaml` in a run directory holds; `load_config` reads it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)
