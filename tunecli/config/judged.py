"""What `tune judge` is asked for: a judge and rows to try it on, in the grammar of recipes but without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf

from tunecli.config.data import DataConfig
from tunecli.config.errors import COMMAND_LINE, ConfigError, Problem
from tunecli.config.judge import JUDGE_SCHEMAS, JudgeConfig, with_shipped
from tunecli.config.judge_checks import judge_problems
from tunecli.config.overrides import check_values, sort_overrides, with_values
from tunecli.config.paths import config_root, option_names
from tunecli.config.schema_check import assign, loose_copy, missing_values
from tunecli.config.yaml_file import YamlFile

OF_DATA = ("format", "columns", "split", "subset", "revision", "max_samples", "sample_by", "on_bad_row")
"""Values of `data` that say which rows are judged; the others are about training."""


@dataclass(kw_only=True, slots=True)
class JudgedConfig:
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0


def judged(path: str, words: Sequence[str]) -> JudgedConfig:
    """The judge that `words` choose (`judge=OPTION`, `judge.KEY=VALUE`), and the rows of `path` (`data.KEY=VALUE`).

    Raises:
        ConfigError: all unknown names, wrong types and other problems at once.
    """
    given = sort_overrides(list(words), _JudgeOptions())
    option = given.choices[-1].partition("=")[2] if given.choices else None
    problems = list(given.problems)
    if option is None and not problems:
        fix = f"judge=NAME, one of {', '.join(option_names('judge'))}"
        raise ConfigError([Problem("judge", "none is chosen", fix)])
    root = OmegaConf.structured(JudgedConfig)
    if option is not None:
        root.judge = _option(option)
    root.data.path = path
    problems += check_values(given.values, root)
    set_keys = {override.key_or_group for override in given.values}
    problems += [_not_of_rows(key) for key in set_keys if key.startswith("data.") and not _says_which_rows(key)]
    problems += missing_values(root, set_keys, COMMAND_LINE) if option is not None else []
    if problems:
        raise ConfigError(problems)
    found = OmegaConf.to_object(with_values(root, given.values))
    assert isinstance(found, JudgedConfig)
    found.judge = with_shipped(found.judge)
    if problems := list(judge_problems(found.judge)):
        raise ConfigError(problems)
    return found


def _says_which_rows(key: str) -> bool:
    return key.split(".")[1] in OF_DATA


def _not_of_rows(key: str) -> Problem:
    return Problem(
        COMMAND_LINE, f"{key} is about training", f"leave it out; there are data.{', data.'.join(OF_DATA)}"
    )


class _JudgeOptions:
    def groups(self) -> set[str]:
        return {"judge"}

    def options(self, group: str) -> set[str]:
        return set(option_names(group))


def _option(name: str) -> DictConfig:
    """A shipped option of the group, at the schema that it inherits."""
    file = YamlFile(config_root() / "judge" / f"{name}.yaml")
    parent = next(entry.group or entry.options[0] for entry in file.defaults())
    schema = loose_copy(OmegaConf.structured(JUDGE_SCHEMAS[parent.rpartition("/")[2].partition("@")[0]]))
    problems = [assign(schema, key, file.value(key), file.where(line)) for key, line in file.body().items()]
    if found := [problem for problem in problems if problem]:
        raise ConfigError(found)
    OmegaConf.set_struct(schema, True)
    return schema
