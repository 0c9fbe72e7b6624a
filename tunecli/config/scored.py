"""What `tune eval` and `tune predict` make of a written configuration: other data, read in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from tunecli.config.data import DataConfig
from tunecli.config.data_checks import data_problems
from tunecli.config.errors import COMMAND_LINE, ConfigError, Problem
from tunecli.config.language_checks import language_problems
from tunecli.config.overrides import check_values, sort_overrides, with_values
from tunecli.config.paths import config_root, option_names, shipped_asset
from tunecli.config.run import RunConfig
from tunecli.config.schema_check import assign, loose_copy
from tunecli.config.yaml_file import YamlFile

ALLOWED = (
    *("data.", "evaluation.", "launch.", "model.attention", "model.device_map", "stage.overlap", "seed"),
    *("train.micro_batch_size", "train.micro_batch_tokens", "train.precision"),
    *("stage.templates", "stage.verbalizer"),
)
"""What can be other than in training without another model."""
UNTRAINED = (*ALLOWED, "stage.")
"""The same of a model that we did not train for the stage."""
OF_READING = (
    *("max_length", "overlong", "truncation_side", "chat_template", "chat_template_kwargs", "system"),
    *("system_prompt", "thinking", "adapter_column"),
)
"""Of `data`: how rows are read, which the model was trained on; everything else says which rows."""
OF_FILE = ("split", "subset", "revision", "max_samples", "mixing", "mixing_temperature")
"""Of `data`: which part of `path` is read, and how often which of several is."""


@dataclass(frozen=True, slots=True)
class Scored:
    config: RunConfig
    name: str
    """of the data"""
    all_rows: bool
    """every row counts; else those of `data.validation`"""
    own: bool
    """they are the validation rows of the run"""


def scored(config: RunConfig, overrides: list[str], allowed: tuple[str, ...] = ALLOWED) -> Scored:
    """`config` with other data: `data=OPTION`, and values in Hydra's grammar.

    A path that is named (`data.path`, `data.mix`) is scored whole; of an option the validation rows are, if it has
    any. Rows are read as `config` has it, up to their length, template and system message.

    Raises:
        ConfigError: all unknown names, wrong types and values that would need another model, at once.
    """
    given = sort_overrides(overrides, _DataOptions())
    option = given.choices[-1].partition("=")[2] if given.choices else None
    if option is not None:
        chosen = _option(option)
        kept = {name: getattr(config.data, name) for name in OF_READING}
        config = replace(config, data=replace(chosen, **kept))
    config = replace(config, data=replace(config.data, streaming=False))
    set_keys = [override.key_or_group for override in given.values]
    config = _for_another_path(config, set_keys)
    written = OmegaConf.structured(config)
    problems = check_values(given.values, written)
    problems += [_not_allowed(key, allowed) for key in set_keys if not key.startswith(allowed)]
    if "evaluation.retain" in set_keys:
        problems.append(Problem("evaluation.retain", "is asked behind training", "name the data itself: data=NAME"))
    if problems := [*given.problems, *problems]:
        raise ConfigError(problems)
    changed = with_values(written, given.values)
    if OmegaConf.is_missing(changed.data, "path"):
        fix = "data=NAME (tune ls data), or data.path=FILE"
        raise ConfigError([Problem("data", "says nowhere what is to be scored", fix)])
    config = OmegaConf.to_object(changed)  # type: ignore[assignment]
    named = _names_a_path(set_keys)
    all_rows = config.data.validation is None or (named and "data.validation" not in set_keys)
    if all_rows:
        config = replace(config, data=replace(config.data, validation=None))
    config = replace(config, data=_with_shipped(config.data))
    if problems := [*data_problems(config), *language_problems(config)]:
        raise ConfigError(problems)
    own = not given.choices and not any(key.startswith("data.") for key in set_keys)
    return Scored(config, _name(config.data, option, named, own), all_rows, own)


def _not_allowed(key: str, allowed: tuple[str, ...]) -> Problem:
    what = f"{key} would be another model than the one that was trained"
    names = ", ".join(f"{name}*" if name.endswith(".") else name for name in allowed)
    return Problem(COMMAND_LINE, what, f"what can be other than in training: data=NAME, {names}")


class _DataOptions:
    """Of the groups of a written configuration only the data can be chosen anew."""

    def groups(self) -> set[str]:
        return {"data"}

    def options(self, group: str) -> set[str]:
        return set(option_names(group))


def _option(name: str) -> DataConfig:
    file = YamlFile(config_root() / "data" / f"{name}.yaml")
    schema = loose_copy(OmegaConf.structured(DataConfig))
    problems = [assign(schema, key, file.value(key), file.where(line)) for key, line in file.body().items()]
    if found := [problem for problem in problems if problem]:
        raise ConfigError(found)
    missing = OmegaConf.is_missing(schema, "path")
    if missing:
        schema.path = ""
    chosen = OmegaConf.to_object(schema)
    assert isinstance(chosen, DataConfig)
    return replace(chosen, path=MISSING) if missing else chosen


def _names_a_path(keys: Iterable[str]) -> bool:
    return any(key in ("data.path", "data.mix") for key in keys)


def _for_another_path(config: RunConfig, keys: list[str]) -> RunConfig:
    """Without what belongs to the path that was there before."""
    if not _names_a_path(keys):
        return config
    usual = DataConfig(path=None)
    fields = {name: getattr(usual, name) for name in OF_FILE if f"data.{name}" not in keys}
    return replace(config, data=replace(config.data, path=None, mix=[], **fields))


def _with_shipped(data: DataConfig) -> DataConfig:
    return replace(
        data,
        path=shipped_asset(data.path) if data.path is not None else None,
        validation=shipped_asset(data.validation) if data.validation is not None else None,
        mix=[replace(source, path=shipped_asset(source.path)) for source in data.mix],
    )


def _name(data: DataConfig, option: str | None, named: bool, own: bool) -> str:
    """For a folder."""
    if own:
        return "validation"
    if option is not None and not named:
        return option
    paths = [data.path] if data.path is not None else [source.path for source in data.mix]
    return "+".join(Path(path).name.removeprefix("builtin:").partition(".")[0] or "data" for path in paths)
