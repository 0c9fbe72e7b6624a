"""The command line's `key=value` words: which choose an option, which set a value, and what is wrong with them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from tunecli.config.errors import COMMAND_LINE, Problem
from tunecli.config.nearest import did_you_mean, nearest
from tunecli.config.paths import NAMED
from tunecli.config.peft_facts import not_supported
from tunecli.config.schema_check import assign, chosen_by_group, has_key, in_open_mapping, loose_copy, unknown_key

LONGEST = 200
"""Of a list of names in a message, in characters."""


class Options(Protocol):
    def groups(self) -> set[str]: ...
    def options(self, group: str) -> set[str]: ...


@dataclass(slots=True)
class SortedOverrides:
    choices: list[str] = field(default_factory=list)
    """`model=llama_7b`, `+peft@peft.second=lora`: in Hydra's grammar, of groups and options that exist"""
    values: list[Override] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def sort_overrides(words: list[str], available: Options) -> SortedOverrides:
    result = SortedOverrides()
    parser = OverridesParser.create()
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException:
            fix = "write key=value; a value with any of = , : { } [ ] ( ) in it needs quotes: 'key=\"a,b\"'"
            result.problems.append(Problem(COMMAND_LINE, f"cannot read {word!r}", fix))
            continue
        if problem := _refused(override):
            result.problems.append(problem)
        elif override.key_or_group in available.groups() and not isinstance(override.value(), dict):
            problem = choice_problem(override.key_or_group, _chosen(override), available, COMMAND_LINE)
            problem = problem or _misplaced(override)
            result.problems += [problem] if problem else []
            result.choices += [] if problem else [word]
        else:
            result.values.append(override)
    return result


def choice_problem(group: str, chosen: list[str], available: Options, where: str) -> Problem | None:
    """What is wrong with choosing these options of a group: no such group or option, or they exclude each other."""
    if group not in available.groups():
        names = sorted(available.groups())
        return Problem(
            where, f"there is no group {group!r}", f"{did_you_mean(group, names)}groups: {', '.join(names)}"
        )
    names = sorted(available.options(group))
    for name in chosen:
        if group == "peft" and name not in names and (problem := not_supported(name, where)):
            return problem
        if name not in names:
            return Problem(where, f"there is no option {name!r} in group {group!r}", _options(name, group, names))
    if group == "peft" and "full" in chosen and len(chosen) > 1:
        return Problem(
            where,
            f"peft=[{','.join(chosen)}]: full fine-tuning leaves nothing for an adapter to do",
            "choose `full` alone or the adapters alone",
        )
    if len(set(chosen)) < len(chosen):
        fix = f"name the second one: +{group}@{group}.second={chosen[-1]}"
        return Problem(where, f"{group}=[{','.join(chosen)}] names an option twice", fix)
    return None


def _options(wanted: str, group: str, names: list[str]) -> str:
    """All that there are, or, of too many, the nearest."""
    line = f"options: {', '.join(names)}"
    if len(line) < LONGEST:
        return f"{did_you_mean(wanted, names)}{line}"
    near = nearest(wanted, names, 3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}`tune ls {group}` lists all {len(names)}"


def check_values(values: list[Override], skeleton: DictConfig) -> list[Problem]:
    """The problems with the keys and the types of overrides."""
    probe = loose_copy(skeleton)
    problems: list[Problem] = []
    for override in values:
        name = override.key_or_group
        path = tuple(name.split("."))
        if problem := chosen_by_group(path, COMMAND_LINE):
            problems.append(problem)
        elif not has_key(skeleton, path) or override.package is not None:
            problems.append(unknown_key(path, skeleton, COMMAND_LINE))
        elif override.is_add() and not in_open_mapping(skeleton, path):
            problems.append(Problem(COMMAND_LINE, f"+{name} adds nothing: the key exists", f"write {name}=VALUE"))
        elif problem := assign(probe, path, override.value(), COMMAND_LINE):
            problems.append(problem)
    return problems


def with_values(config: DictConfig, values: list[Override]) -> DictConfig:
    """A copy of `config` with overrides that `check_values` found nothing wrong with, the last of a key counting."""
    changed = loose_copy(config)
    for override in values:
        assign(changed, tuple(override.key_or_group.split(".")), override.value(), COMMAND_LINE)
    return changed


def _refused(override: Override) -> Problem | None:
    word, name = override.input_line, override.key_or_group
    if override.is_sweep_override():
        fix = "write a list as [a,b], and quotes around text that holds a comma: 'key=\"a,b\"'"
        return Problem(COMMAND_LINE, f"{word!r} names several values", fix)
    if override.is_force_add():
        return Problem(COMMAND_LINE, f"{word!r}: `++` is not supported", f"write {name}=VALUE")
    if override.is_delete():
        fix = "choose another option of the group (peft=full, say) or set the key to another value"
        return Problem(COMMAND_LINE, f"{word!r}: `~` is not supported", fix)
    return None


def _misplaced(override: Override) -> Problem | None:
    """Only entries of `peft` and `reward` have names, and each is one option."""
    group, place, options = override.key_or_group, override.package, _chosen(override)
    if place is None or (group in NAMED and re.fullmatch(rf"{group}\.\w+", place) and len(options) == 1):
        return None
    named = f"+{group}@{group}.NAME={options[0]} adds an entry of that name"
    one = named if group in NAMED else f"{group}={options[0]}"
    return Problem(COMMAND_LINE, f"there is no place {place!r} for {group} {', '.join(options)}", one)


def _chosen(override: Override) -> list[str]:
    value = override.value()
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]
