"""A recipe or option file with the line of every key, and copies of it that lack some keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunecli.config.errors import ConfigError, Problem
from tunecli.config.paths import display

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Default:
    """One entry of a defaults list. `group` is empty for a whole config (`- run`, `- another_recipe`)."""

    group: str
    package: str
    options: tuple[str, ...]
    line: int


class YamlFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = path.read_text(encoding="utf-8")
        try:
            root = yaml.compose(self._text, Loader=yaml.SafeLoader)
            values = OmegaConf.to_container(OmegaConf.create(self._text or "{}"), resolve=False)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError([self._unreadable(error)]) from None
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                [Problem(self.where(), "is not a mapping of keys to values", "write `key: value` lines")]
            )
        self._root = root
        self._values: Any = values

    def where(self, line: int | None = None) -> str:
        return display(self.path) if line is None else f"{display(self.path)}:{line}"

    def body(self) -> dict[KeyPath, int]:
        """Path of every value that is not a mapping with entries -> its line. Without the defaults list."""
        return {path: node.start_mark.line + 1 for path, node in _leaves(self._root, ()) if path[0] != "defaults"}

    def value(self, path: KeyPath) -> Any:
        value = self._values
        for key in path:
            value = value[key]
        return value

    def defaults(self) -> list[Default]:
        for key, node in self._root.value if self._root else []:
            if key.value == "defaults" and isinstance(node, yaml.SequenceNode):
                return [_default(entry) for entry in node.value]
        return []

    def without(self, drop: set[KeyPath]) -> str:
        """The file's text less these values; Hydra's header stays."""
        header = "".join(f"{line}\n" for line in self._text.splitlines() if line.startswith("# @package"))
        kept = _pruned(self._root, (), drop) if self._root else None
        return header + (yaml.serialize(kept) if kept is not None else "")

    def _unreadable(self, error: Exception) -> Problem:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        return Problem(
            self.where(mark.line + 1 if mark else None), f"cannot be read as YAML: {what}", "mend the line"
        )


def _leaves(node: yaml.Node | None, path: KeyPath) -> Iterator[tuple[KeyPath, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        below = (*path, key.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, below)
        else:
            yield below, key


def _pruned(node: yaml.MappingNode, path: KeyPath, drop: set[KeyPath]) -> yaml.MappingNode | None:
    """A copy of the mapping without dropped leaves and without mappings that lost all their entries."""
    entries = []
    for key, value in node.value:
        below = (*path, key.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            value = _pruned(value, below, drop)
        elif below in drop:
            value = None
        if value is not None:
            entries.append((key, value))
    return yaml.MappingNode(node.tag, entries) if entries else None


def _default(node: yaml.Node) -> Default:
    """`- run`, `- model: x`, `- override /peft: [a, b]` and `- peft@peft.second: lora`, each with its line."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode) or not node.value:
        return Default("", "", (str(node.value),), line)
    key, value = node.value[0]
    group, _, package = key.value.split()[-1].lstrip("/").partition("@")
    chosen = value.value if isinstance(value, yaml.SequenceNode) else [value]
    options = tuple(item.value for item in chosen if item.value not in ("null", "~", ""))
    return Default(group, package, options, line)
