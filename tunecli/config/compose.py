"""Recipe + overrides -> one typed `RunConfig`. Nothing outside this package sees Hydra or OmegaConf.

Hydra composes; what is added here is the swap rule and errors that a person can act on. First the options are
selected and no value is read: the schemas of that selection tell which keys exist, so that
- a body value whose option was swapped away is pruned, with a note, instead of failing or landing elsewhere;
- every unknown key and every wrong type is reported at once, with the file and line that it stands in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from tunecli.config.composer import Composer, Layer, Selection
from tunecli.config.errors import ConfigError, Problem
from tunecli.config.judge import JUDGE_SCHEMAS, with_shipped
from tunecli.config.nearest import did_you_mean
from tunecli.config.overrides import check_values, sort_overrides, with_values
from tunecli.config.paths import NAMED, find_recipe, shipped_asset
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.peft_facts import not_supported
from tunecli.config.reward import REWARD_SCHEMAS, RewardModelConfig
from tunecli.config.run import RunConfig
from tunecli.config.schema_check import (
    assign,
    chosen_by_group,
    has_key,
    loose_copy,
    missing_values,
    readable_errors,
    unknown_key,
)
from tunecli.config.stage import STAGE_SCHEMAS, PPOConfig
from tunecli.config.store import SCHEMAS
from tunecli.config.yaml_file import KeyPath, YamlFile

SOURCE_KEYS = {
    "model": {"path", "revision"},
    "data": {"path", "mix", "format", "columns", "split", "subset", "revision", "validation"},
    "judge": {"path", "revision", "model", "base_url", "api_key_env"},
}
"""What says *which* model or data set it is. In a recipe's body such a value never outlives its option."""


@dataclass(frozen=True, slots=True)
class Composed:
    config: RunConfig
    text: str
    """The resolved configuration as YAML; `load_config` reads it back."""
    notes: list[str]
    """Values of the recipe that fell away because their option was swapped."""
    layers: list[Layer]
    """The files that took part, in the order of merging."""
    fallen: dict[str, set[KeyPath]]
    """By layer: what did not take part."""
    overrides: list[str]


@dataclass(slots=True)
class _Body:
    """The values in the recipe files, sorted against the keys that exist once all options are chosen."""

    kept: set[str] = field(default_factory=set)
    fallen: dict[str, set[KeyPath]] = field(default_factory=lambda: defaultdict(set))
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def compose_run(recipe: str, overrides: list[str]) -> Composed:
    """Compose `recipe` (a shipped name or the path of a file) under Hydra `overrides`.

    Raises:
        ConfigError: all problems at once: unknown recipe, option or key names, wrong types, missing values.
    """
    primary = YamlFile(find_recipe(recipe))
    with Composer(primary) as composer:
        given = sort_overrides(overrides, composer)
        selection = composer.select(given.choices)
        recipes = [layer for layer in selection.layers if not layer.section]
        composer.write(recipes, {})
        body = _sort_body(composer, selection)
        problems = check_values(given.values, selection.skeleton)
        set_keys = body.kept | {override.key_or_group for override in given.values}
        missing = missing_values(selection.skeleton, set_keys, primary.where())
        if problems := [*body.problems, *given.problems, *_chosen_twice(selection), *problems, *missing]:
            raise ConfigError(problems)
        composer.write(recipes, body.fallen)
        composed = with_values(composer.compose(given.choices), given.values)
    composed.recipe = primary.path.stem
    with readable_errors(primary.where()):
        text = OmegaConf.to_yaml(composed, resolve=True)
        return Composed(_typed(composed), text, body.notes, selection.layers, body.fallen, overrides)


def _sort_body(composer: Composer, selection: Selection) -> _Body:
    """Which values in the files stay, which fall away in a swap, and which were never right."""
    body = _Body()
    skeleton, options = selection.skeleton, selection.options()
    probe = loose_copy(skeleton)
    for layer in selection.layers:
        own = selection if layer.section else composer.select([], layer.name)
        if problem := _homeless(layer, skeleton):
            body.problems.append(problem)
            continue
        swapped = {group for group, names in own.options().items() if names != options[group]}
        for path, line in layer.lines().items():
            where = layer.file.where(line)
            if problem := chosen_by_group(path, where):
                body.problems.append(problem)
            elif path[0] in swapped and _names_source(path):
                body.fallen[layer.name].add(path)
            elif has_key(skeleton, path):
                value = layer.value(path)
                problem = assign(probe, path, value, where)
                body.problems += [problem] if problem else []
                body.kept |= {".".join(path)} if value != MISSING else set()
            elif has_key(own.skeleton, path):
                body.fallen[layer.name].add(path)
            else:
                body.problems.append(unknown_key(path, skeleton, where))
        now = {group: ",".join(names) for group, names in options.items()}
        now |= {group: ",".join(map(str, skeleton[group])) or now.get(group, "none") for group in NAMED}
        body.notes += _notes(layer, body.fallen[layer.name], now)
    return body


def _chosen_twice(selection: Selection) -> Iterator[Problem]:
    """Entries of `peft` and `reward` that two options give: the later one would set the values of the recipe back,
    unseen."""
    seen: set[KeyPath] = set()
    for layer in selection.layers:
        if layer.section in seen:
            key, (group, _, option) = ".".join(layer.section), layer.name.partition("/")
            second = f"+{group}@{group}.second={option}"
            fix = f"choose it once (values: {key}.KEY=VALUE); a second one has a name: {second}"
            yield Problem(key, "is chosen twice, and the later choice would undo what the recipe sets", fix)
        elif len(layer.section) == 2 and layer.section[0] in NAMED:
            seen.add(layer.section)


def _homeless(layer: Layer, skeleton: DictConfig) -> Problem | None:
    """The problem of an option that does not say which entry of `peft` or `reward` it is, or of which kind."""
    group, _, option = layer.name.partition("/")
    if group not in NAMED or not layer.file.body():
        return None
    if len(layer.section) == 1:
        return Problem(
            layer.file.where(1), "does not say which entry it is", f"begin with `# @package {group}.{option}`"
        )
    if not has_key(skeleton, layer.section):
        fix = f"inherit one: `defaults: [/schema/{group}/{next(iter(SCHEMAS[group]))}@_here_, _self_]`"
        return Problem(layer.file.where(1), "has no schema", fix)
    return None


def _names_source(path: KeyPath) -> bool:
    return len(path) > 1 and path[1] in SOURCE_KEYS.get(path[0], ())


def _notes(layer: Layer, fallen: set[KeyPath], now: dict[str, str]) -> list[str]:
    """One line for each group that lost values: which, where they stood, and what there is `now`."""
    notes = []
    for group in dict.fromkeys(path[0] for path in layer.file.body() if path in fallen):
        lines = {path: line for path, line in layer.file.body().items() if path in fallen and path[0] == group}
        names = ", ".join(".".join(path) for path in lines)
        there = now.get(group) or "none"
        notes.append(f"{layer.file.where(min(lines.values()))}: {names} fell away, as {group} is now {there}")
    return notes


def load_config(path: Path) -> RunConfig:
    """Read a written `config.yaml` back. Its `method` and `name` values choose the schemas; Hydra takes no part.

    Raises:
        ConfigError: all unknown keys, wrong types and missing values at once.
    """
    file = YamlFile(path)
    schema, problems = _schema_of(file)
    body = file.body()
    for key, line in body.items():
        if not has_key(schema, key):
            problems.append(unknown_key(key, schema, file.where(line)))
        elif problem := assign(schema, key, file.value(key), file.where(line)):
            problems.append(problem)
    problems += missing_values(schema, {".".join(key) for key in body}, file.where())
    if problems:
        raise ConfigError(problems)
    with readable_errors(file.where()):
        return _typed(schema)


def _schema_of(file: YamlFile) -> tuple[DictConfig, list[Problem]]:
    """The schema that a written configuration chose by its `method` and `name` values."""
    schema = OmegaConf.structured(RunConfig)
    problems = []
    methods = {path[1]: file.value(path) for path in file.body() if path[::2] == ("peft", "method")}
    for name in dict.fromkeys(path[1] for path in file.body() if path[0] == "peft" and len(path) > 2):
        if methods.get(name) in PEFT_SCHEMAS:
            schema.peft[name] = PEFT_SCHEMAS[methods[name]]
        else:
            problem = not_supported(str(methods.get(name)), file.where())
            problems.append(problem or _no_such(f"peft.{name}.method", methods.get(name), PEFT_SCHEMAS, file))
    kinds = {path[1]: file.value(path) for path in file.body() if path[::2] == ("reward", "kind")}
    for name in dict.fromkeys(path[1] for path in file.body() if path[0] == "reward" and len(path) > 2):
        if kinds.get(name) in REWARD_SCHEMAS:
            schema.reward[name] = REWARD_SCHEMAS[kinds[name]]
        else:
            problems.append(_no_such(f"reward.{name}.kind", kinds.get(name), REWARD_SCHEMAS, file))
    stage = file.value(("stage", "name")) if ("stage", "name") in file.body() else None
    if stage in STAGE_SCHEMAS:
        schema.stage = STAGE_SCHEMAS[stage]
    else:
        problems.append(_no_such("stage.name", stage, STAGE_SCHEMAS, file))
    problems += _choose_judge(schema, file)
    return schema, problems


def _choose_judge(schema: DictConfig, file: YamlFile) -> list[Problem]:
    """Where the configuration has a judge."""
    if not any(path[0] == "judge" and len(path) > 1 for path in file.body()):
        return []
    backend = file.value(("judge", "backend")) if ("judge", "backend") in file.body() else None
    if backend not in JUDGE_SCHEMAS:
        return [_no_such("judge.backend", backend, JUDGE_SCHEMAS, file)]
    schema.judge = JUDGE_SCHEMAS[backend]
    return []


def _no_such(key: str, value: Any, names: Iterable[str], file: YamlFile) -> Problem:
    fix = f"{did_you_mean(str(value), names)}known: {', '.join(names)}"
    return Problem(file.where(), f"{key}: there is no {value!r}", fix)


def _typed(config: DictConfig | ListConfig) -> RunConfig:
    result = OmegaConf.to_object(config)
    assert isinstance(result, RunConfig)
    result.model.path = shipped_asset(result.model.path)
    if result.judge is not None:
        result.judge = with_shipped(result.judge)
    data = result.data
    data.path = shipped_asset(data.path) if data.path is not None else None
    data.validation = shipped_asset(data.validation) if data.validation is not None else None
    for source in data.mix:
        source.path = shipped_asset(source.path)
    if isinstance(result.stage, PPOConfig) and result.stage.value_path is not None:
        result.stage.value_path = shipped_asset(result.stage.value_path)
    for reward in result.reward.values():
        if isinstance(reward, RewardModelConfig):
            reward.path = shipped_asset(reward.path)
    return result
