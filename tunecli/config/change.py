"""Changing values of a configuration that is written already: what `tune resume RUN key=value` does."""

from __future__ import annotations

from omegaconf import OmegaConf

from tunecli.config.errors import COMMAND_LINE, ConfigError, Problem
from tunecli.config.overrides import check_values, sort_overrides, with_values
from tunecli.config.run import RunConfig
from tunecli.config.schema_check import has_key

RESUMABLE = (
    *("train.max_steps", "train.num_epochs", "train.learning_rate", "train.lr_scheduler", "train.warmup_steps"),
    *("train.weight_decay", "train.adam_beta1", "train.adam_beta2", "train.adam_epsilon", "train.max_grad_norm"),
    "train.pull_to_start",
    *("train.micro_batch_size", "train.micro_batch_tokens", "train.log_every", "train.eval_every"),
    *("train.save_every", "train.keep_last", "launch.num_processes", "launch.strategy"),
    *("train.max_minutes", "train.early_stopping", "train.trackers", "data.num_workers"),
    *("evaluation.prompts", "evaluation.max_new_tokens", "evaluation.temperature", "evaluation.retain"),
    *("model.gradient_checkpointing", "model.attention", "model.device_map"),
)
"""What a run can change on the way. Its checkpoints would not fit, or not mean the same, under another value of
anything else: the model, the adapters, the data and their order, the optimizer."""


class _NoOptions:
    """A written configuration has no groups left to choose from."""

    def groups(self) -> set[str]:
        return set()

    def options(self, group: str) -> set[str]:
        return set()


def override_config(config: RunConfig, overrides: list[str]) -> RunConfig:
    """`config` with the values of `overrides` (Hydra's `key=value` grammar).

    Raises:
        ConfigError: all unknown keys, wrong types and values that a run cannot change, at once.
    """
    written = OmegaConf.structured(config)
    given = sort_overrides(overrides, _NoOptions())
    problems = check_values(given.values, written)
    problems += [
        Problem(
            COMMAND_LINE,
            f"{override.key_or_group} cannot change in the middle of a run",
            f"start a new run; {_resumable(override.key_or_group)}",
        )
        for override in given.values
        if override.key_or_group not in RESUMABLE and has_key(written, tuple(override.key_or_group.split(".")))
    ]
    if problems := [*given.problems, *problems]:
        raise ConfigError(problems)
    return OmegaConf.to_object(with_values(written, given.values))  # type: ignore[return-value]


def _resumable(key: str) -> str:
    """What can change in the section of `key`, or which sections have something that can."""
    section = key.partition(".")[0]
    if names := [each.removeprefix(f"{section}.") for each in RESUMABLE if each.startswith(f"{section}.")]:
        return f"of {section} tune resume takes {', '.join(names)}"
    return f"tune resume takes values of {', '.join(dict.fromkeys(each.partition('.')[0] for each in RESUMABLE))}"
