"""Changing values of a configuration that is written already: what `tune resume RUN key=value` does."""

from __future__ import annotations

from omegaconf import OmegaConf

from tunecli.config.errors import ConfigError
from tunecli.config.overrides import COMMAND_LINE, check_values, sort_overrides
from tunecli.config.run import RunConfig
from tunecli.config.schema_check import assign, loose_copy


class _NoOptions:
    """A written configuration has no groups left to choose from."""

    def groups(self) -> set[str]:
        return set()

    def options(self, group: str) -> set[str]:
        return set()


def override_config(config: RunConfig, overrides: list[str]) -> RunConfig:
    """`config` with the values of `overrides` (Hydra's `key=value` grammar).

    Raises:
        ConfigError: all unknown keys and wrong types at once.
    """
    written = OmegaConf.structured(config)
    given = sort_overrides(overrides, _NoOptions())
    _, problems = check_values(given.values, written)
    if problems := [*given.problems, *problems]:
        raise ConfigError(problems)
    changed = loose_copy(written)
    for override in given.values:
        assign(changed, tuple(override.key_or_group.split(".")), override.value(), COMMAND_LINE)
    return OmegaConf.to_object(changed)  # type: ignore[return-value]
