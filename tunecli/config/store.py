"""Makes the dataclasses known to Hydra: `run` is the root, `schema/<group>/<name>` what an option file inherits."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from tunecli.config.data import DataConfig
from tunecli.config.judge import JUDGE_SCHEMAS
from tunecli.config.launch import LaunchConfig
from tunecli.config.model import ModelConfig
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.reward import REWARD_SCHEMAS
from tunecli.config.run import RunConfig
from tunecli.config.stage import STAGE_SCHEMAS

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"model": ModelConfig},
    "data": {"data": DataConfig},
    "peft": dict(PEFT_SCHEMAS),
    "stage": dict(STAGE_SCHEMAS),
    "reward": dict(REWARD_SCHEMAS),
    "judge": dict(JUDGE_SCHEMAS),
    "launch": {"launch": LaunchConfig},
}


def register() -> None:
    store = ConfigStore.instance()
    store.store(name="run", node=RunConfig)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
