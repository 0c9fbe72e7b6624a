"""Questions to a composed configuration: is there such a key, does the value fit it, what has no value yet."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunecli.config.data import SourceConfig
from tunecli.config.errors import COMMAND_LINE, ConfigError, Problem
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import NAMED
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.peft_facts import not_supported
from tunecli.config.reward import REWARD_SCHEMAS
from tunecli.config.yaml_file import KeyPath

OPEN = (str, int, float, Any)
"""Value types of mappings that take any key."""

GIVEN = {
    "data.path": ("data.path", "it is not said which data", "data.path=FILE, or OWNER/NAME on the Hub"),
    "model.path": (
        "model.path",
        "it is not said which model",
        "model.path=FOLDER, or OWNER/NAME on the Hub",
    ),
    "judge.path": (
        "judge.path",
        "it is not said which model judges",
        "judge.path=RUN, a folder, or OWNER/NAME on the Hub",
    ),
    "judge.model": ("judge.model", "it is not said which model judges", "judge.model=NAME, as the server calls it"),
    "stage.name": ("stage", "none is chosen", "+stage=sft, or `- stage: sft` in the defaults list"),
}
"""Keys that every run needs: the problem where they have no value, wherever that is to be given."""


def has_key(config: DictConfig, path: KeyPath) -> bool:
    """Whether the schema has this key, with a value or without."""
    section = _node(config, path[:-1])
    return isinstance(section, DictConfig) and (path[-1] in section.keys() or _is_open(section))  # noqa: SIM118


def in_open_mapping(config: DictConfig, path: KeyPath) -> bool:
    """Whether the key stands in a mapping that takes any key, as `data.columns` does."""
    return _is_open(_node(config, path[:-1]))


def _node(config: DictConfig, path: KeyPath) -> Any:
    node: Any = config
    for key in path:
        node = node._get_node(key, validate_access=False) if isinstance(node, DictConfig) else None
    return node


def _is_open(node: Any) -> bool:
    return isinstance(node, DictConfig) and node._metadata.object_type is dict and node._metadata.element_type in OPEN


def keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key, sections included."""
    for key in map(str, config.keys()):  # noqa: SIM118
        yield prefix + key
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from keys(node, f"{prefix}{key}.")


def unknown_key(path: KeyPath, config: DictConfig, where: str) -> Problem:
    name = ".".join(path)
    if any("." in key for key in path):
        return Problem(where, f"{name!r} is a dotted key", "in a file nest the keys; dots are for the command line")
    if path[0] in NAMED and len(path) > 1 and (problem := _no_entry(path, config, where)):
        return problem
    if path[0] == "judge" and len(path) > 1 and config.judge is None:
        return Problem(where, f"{name}: there is no judge", "+judge=local, say; `tune ls judge` lists them")
    return Problem(
        where,
        f"there is no key {name!r}",
        f"{did_you_mean(name, keys(config))}`tune show recipe=NAME` lists all keys",
    )


def _no_entry(path: KeyPath, config: DictConfig, where: str) -> Problem | None:
    """The problem of a value for a method or a reward that is not chosen, or not there."""
    group, name = path[:2]
    options = {"peft": tuple(PEFT_SCHEMAS), "reward": tuple(REWARD_SCHEMAS)}[group]
    chosen = list(map(str, config[group] or ()))
    if name in chosen:
        return None
    what = f"there is no entry {name!r} in {group}, which has {', '.join(chosen) or 'none'}"
    if name in options:
        together = f"; beside what is chosen: {group}=[{','.join([*chosen, name])}]" if chosen else ""
        return Problem(where, what, f"{'' if chosen or group == 'peft' else '+'}{group}={name}{together}")
    if group == "peft" and (known := not_supported(name, where)):
        return known
    return Problem(
        where, what, f"{did_you_mean(name, chosen)}+{group}@{group}.{name}={options[0]} adds one of that name"
    )


def chosen_by_group(path: KeyPath, where: str) -> Problem | None:
    """The problem with setting a key that follows from the choice of the recipe or of an option."""
    if path == ("recipe",):
        return Problem(where, "`recipe` is not set by hand", "leave it out; it is the name of the recipe's file")
    of_option = path in (("stage", "name"), ("judge", "backend"))
    if of_option or (path[0] in NAMED and path[2:] == (NAMED[path[0]],)):
        fix = f"choose the option instead: {path[0]}=NAME; `tune ls {path[0]}` lists them"
        return Problem(where, f"{'.'.join(path)} only records which option was chosen", fix)
    return None


def assign(config: DictConfig, path: KeyPath, value: Any, where: str) -> Problem | None:
    """Set the existing key `path` to `value`, or say why the value does not fit.

    A mapping that takes any key is replaced: what it held before would stay beside the new names, unseen.
    """
    section = _node(config, path[:-1])
    try:
        if isinstance(value, dict) and _is_open(_node(config, path)):
            section[path[-1]] = value
        else:
            section.merge_with({path[-1]: value})
    except OmegaConfBaseException as error:
        return _wrong_type(".".join(path), _first_line(error), where)
    return None


def _wrong_type(key: str, message: str, where: str) -> Problem:
    if found := re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", message):
        kind = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(found[2], found[2])
        return Problem(where, f"{key} is {found[1]!r}", f"{key} takes {kind}")
    if found := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", message):
        return Problem(
            where, f"{key} is {found[1]!r}", f"{did_you_mean(found[1], found[2].split(', '))}one of {found[2]}"
        )
    if found := re.match(r"Key '(.*)' not in 'SourceConfig'", message):
        names = [field.name for field in fields(SourceConfig)]
        fix = f"{did_you_mean(found[1], names)}an entry has {', '.join(names)}"
        return Problem(where, f"{key} has an entry with {found[1]!r}", fix)
    if "is not a subclass of SourceConfig" in message:
        return Problem(
            where, f"{key} has an entry that is no mapping", f"{key}=[{{path: a.jsonl}}, {{path: b.jsonl}}]"
        )
    if "is not a ListConfig, list or tuple" in message:
        return Problem(where, f"{key} takes a list", f"{key}=[VALUE] or [VALUE, VALUE]")
    if re.match(r"Cannot assign \w+ to Dict|Cannot merge DictConfig with ListConfig", message):
        return Problem(where, f"{key} takes names with values", f"'{key}={{NAME: VALUE}}'")
    if message.startswith("Incompatible value 'None'"):
        return Problem(where, f"{key} cannot be null", "`tune show` prints the values in use")
    return Problem(where, f"{key}: {message}", "`tune show` prints the values in use")


def loose_copy(config: DictConfig) -> DictConfig:
    """A copy to try values on; mappings that take any key take new ones."""
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    return config


def missing_values(config: DictConfig, given: set[str], where: str) -> list[Problem]:
    """Keys without a value that are not among `given` either. `recipe` is filled in by the caller."""
    keys = sorted(OmegaConf.missing_keys(config) - given - {"recipe"})
    return [Problem(*GIVEN.get(key, (where, f"{key} has no value", f"add {key}=VALUE"))) for key in keys]


@contextmanager
def readable_errors(where: str) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into one problem of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        what = _first_line(error if str(error) else error.__cause__)
        nothing_there = _replaces_nothing(what)
        raise ConfigError([nothing_there or Problem(where, what, "`tune ls GROUP` lists the options")]) from None


def _replaces_nothing(message: str) -> Problem | None:
    """The problem of a choice on the command line where the recipe makes none, from what Hydra says of it."""
    found = re.match(r"Could not override '(.*?)'.* To append to your default list use (\S+=(.*))", message)
    if found is None:
        return None
    (group, _, place), add, option = found[1].partition("@"), found[2], found[3]
    if not place:
        return Problem(COMMAND_LINE, f"this recipe chooses no {group} that could be replaced", f"{add} adds one")
    what = f"this recipe has no {found[1]} that could be replaced"
    return Problem(COMMAND_LINE, what, f"{add} adds one; {group}={option} replaces all that are chosen")


def _first_line(error: BaseException | None) -> str:
    """What happened, without OmegaConf's trailer (full_key, object_type) and Hydra's list of folders."""
    text = re.split(r"\n\s*(?:full_key|reference_type|object_type|Config search path)", str(error))[0]
    return re.sub(r"\s+", " ", re.sub(r"\w+ raised while composing config:", "", text)).strip()
