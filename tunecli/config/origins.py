"""What set each value of a composed configuration: a file and its line, the command line, or a schema's default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from tunecli.config.compose import Composed
from tunecli.config.errors import COMMAND_LINE
from tunecli.config.yaml_file import KeyPath

DEFAULT = "default of "
"""Stands before the name of the schema that gave a value."""


def find_origins(composed: Composed) -> dict[str, str]:
    """Dotted key -> origin, for every value, in the order of the configuration."""
    origins = {path: f"{DEFAULT}{owner}" for path, owner in _values(composed.config, ())}
    given: dict[KeyPath, str] = {("recipe",): "the recipe's file name"}
    for layer in composed.layers:
        fallen = composed.fallen.get(layer.name, set())
        given |= {path: layer.file.where(line) for path, line in layer.lines().items() if path not in fallen}
    for override in OverridesParser.create().parse_overrides(composed.overrides):
        for path in _paths(tuple(override.key_or_group.split(".")), override.value()):
            given[path] = COMMAND_LINE
    return {".".join(path): given.get(path, default) for path, default in origins.items()}


def stated(origins: Mapping[str, str]) -> dict[str, str]:
    """Those of `origins` that are no defaults; for what stands in a mapping, the mapping too."""
    given = {key: origin for key, origin in origins.items() if not origin.startswith(DEFAULT)}
    above = {key.rpartition(".")[0]: origin for key, origin in given.items()}
    return above | given


def _values(node: Any, path: KeyPath, owner: str = "") -> Iterator[tuple[KeyPath, str]]:
    """Path of every value below `node`, and the name of the dataclass that declares it."""
    if is_dataclass(node):
        for field in fields(node):
            yield from _values(getattr(node, field.name), (*path, field.name), type(node).__name__)
    elif isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _values(value, (*path, key), owner)
    else:
        yield path, owner


def _paths(path: KeyPath, value: Any) -> Iterator[KeyPath]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _paths((*path, str(key)), below)
    else:
        yield path
