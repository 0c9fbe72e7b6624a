"""What could stand where the cursor is: the hidden verb that the completion scripts call. It runs on every <Tab>, so
it reads file names and dataclasses, and imports neither Hydra nor torch."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum

from tunecli.config.paths import GROUPS, NAMED, option_names, recipe_names

COMPOSING = ("run", "show", "preview", "check")
FROM_OPTIONS = ("recipe", *NAMED, "judge", "stage.name", "judge.backend")
"""Keys that follow from what is chosen."""
OVERRIDING = (*COMPOSING, "resume", "eval", "predict")


def run(words: list[str]) -> int:
    print("\n".join(candidates(words)))
    return 0


def candidates(words: list[str]) -> list[str]:
    """Whole words that may replace the last of `words` (what stands after `tune`, the last one unfinished)."""
    from tunecli.cli import VERBS, parser

    *before, word = words or [""]
    if not before:
        return _starting(word, VERBS)
    verb = before[0]
    if verb not in VERBS:
        return []
    if word.startswith("-"):
        options = [text for action in parser(verb)._actions for text in action.option_strings]
        return _starting(word, [text for text in options if text.startswith("--")])
    if verb in OVERRIDING:
        choosing = verb in COMPOSING
        return _starting(word, _values(word, choosing) if "=" in word else _keys(word, choosing, before))
    if verb == "ls" and len(before) == 1:
        return _starting(word, ("recipes", *GROUPS))
    if verb == "cp" and len(before) == 1:
        options = [f"{group}/{option}" for group in GROUPS for option in option_names(group)]
        return _starting(word, [*recipe_names(), *options])
    if verb == "completion" and len(before) == 1:
        return _starting(word, ("bash", "zsh", "fish"))
    return []


def _starting(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _keys(word: str, choosing: bool, before: list[str]) -> list[str]:
    """Keys with one more level: `train.`, then `train.max_steps=`. When `choosing`, `recipe=` and groups too."""
    level = word.count(".")
    keys = [_cut(key, level) for key in _leaves()]
    if choosing and level == 0:
        recipe = [] if any(other.startswith("recipe=") for other in before) else ["recipe="]
        keys = [*recipe, *(f"{group}=" for group in GROUPS), *keys]
    return list(dict.fromkeys(keys))


def _cut(key: str, level: int) -> str:
    parts = key.split(".")
    return ".".join(parts[: level + 1]) + ("." if len(parts) > level + 1 else "=")


def _values(word: str, choosing: bool) -> list[str]:
    """Whole words `key=value`. In a list, as in `peft=[lora,b`, the last element is completed."""
    key, _, value = word.partition("=")
    group = key.lstrip("+").partition("@")[0]
    if choosing and key == "recipe":
        choices = recipe_names()
    elif choosing and group in GROUPS:
        choices = option_names(group)
    else:
        choices = _leaves().get(key, [])
    done = value[: max(value.rfind("["), value.rfind(",")) + 1]
    return [f"{key}={done}{choice}" for choice in choices]


def _leaves() -> dict[str, list[str]]:
    """Dotted key -> the values that it can have, where they can be listed. Of every PEFT method and every stage."""
    from tunecli.config.judge import JUDGE_SCHEMAS
    from tunecli.config.peft import PEFT_SCHEMAS
    from tunecli.config.reward import REWARD_SCHEMAS
    from tunecli.config.run import RunConfig
    from tunecli.config.stage import STAGE_SCHEMAS

    leaves = _leaves_of(RunConfig, "")
    for schema in STAGE_SCHEMAS.values():
        leaves |= _leaves_of(schema, "stage.")
    for judge in JUDGE_SCHEMAS.values():
        leaves |= _leaves_of(judge, "judge.")
    for name, schema in PEFT_SCHEMAS.items():
        leaves |= _leaves_of(schema, f"peft.{name}.")
    for name, schema in REWARD_SCHEMAS.items():
        leaves |= _leaves_of(schema, f"reward.{name}.")
    return {key: values for key, values in leaves.items() if key not in FROM_OPTIONS}


def _leaves_of(schema: type, prefix: str) -> dict[str, list[str]]:
    types = typing.get_type_hints(schema)
    leaves: dict[str, list[str]] = {}
    for field in fields(schema):
        kind = types[field.name]
        if is_dataclass(kind):
            leaves |= _leaves_of(typing.cast(type, kind), f"{prefix}{field.name}.")
        elif field.name not in NAMED.values():
            leaves[f"{prefix}{field.name}"] = _choices(kind)
    return leaves


def _choices(kind: object) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [member.name for member in kind]
    return ["true", "false"] if kind is bool else []
