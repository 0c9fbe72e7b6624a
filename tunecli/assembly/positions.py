"""`data.max_length` and `stage.max_target_length` of a run, where its model cannot read texts that long."""

from __future__ import annotations

from dataclasses import replace

from tunecli.config.run import RunConfig
from tunecli.models.positions import num_positions


def within_positions(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The configuration with lengths that the model has positions for, and what was changed, for a person."""
    most = num_positions(config.model)
    if most is None:
        return config, []
    said = []
    if config.data.max_length > most:
        said.append(_said("data.max_length", most, config.data.max_length))
        config = replace(config, data=replace(config.data, max_length=most))
    written = getattr(config.stage, "max_target_length", 0)
    if written > most:
        said.append(_said("stage.max_target_length", most, written))
        config = replace(config, stage=replace(config.stage, max_target_length=most))  # type: ignore[call-arg]
    return config, said


def _said(key: str, most: int, asked: int) -> str:
    return f"{key}={most}, not {asked}: the model has no more positions"
