"""Hydra over three folders: a temporary one with copies of the recipe files, the recipe's own (whose subfolders may
hold options of the user's), and what is shipped. The copies are what lets values be taken out before composing."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tunecli.config.errors import ConfigError, Problem
from tunecli.config.nearest import did_you_mean
from tunecli.config.overrides import choice_problem
from tunecli.config.paths import NAMED, config_root, recipe_root
from tunecli.config.run import RunConfig
from tunecli.config.schema_check import readable_errors
from tunecli.config.store import SCHEMAS, register
from tunecli.config.yaml_file import Default, KeyPath, YamlFile

ROOT_SCHEMA = "run"


@dataclass(frozen=True, slots=True)
class Layer:
    """One file that takes part: the section that it lands in and the line of every value that it gives."""

    name: str
    """As in a defaults list: `model/llama_7b`, `qlora_llama65b`"""
    section: KeyPath
    file: YamlFile

    def lines(self) -> dict[KeyPath, int]:
        return {(*self.section, *path): line for path, line in self.file.body().items()}

    def value(self, path: KeyPath) -> Any:
        return self.file.value(path[len(self.section) :])


@dataclass(frozen=True, slots=True)
class Selection:
    """What a recipe and the chosen options come to, before any of their values."""

    layers: list[Layer]
    """In the order of merging"""
    skeleton: DictConfig
    """Every key that there is, at the defaults of the schemas"""

    def options(self) -> dict[str, list[str]]:
        """Group -> names of its chosen options, in order."""
        chosen: dict[str, list[str]] = defaultdict(list)
        for layer in self.layers:
            group, _, option = layer.name.partition("/")
            if option:
                chosen[group].append(option)
        return chosen


class Composer:
    def __init__(self, primary: YamlFile) -> None:
        self.primary = primary
        self.name = primary.path.stem
        self._files = {primary.path: primary}
        self._selections: dict[tuple[str, ...], Selection] = {}
        self._folders = list(dict.fromkeys([primary.path.parent, recipe_root(), config_root()]))
        self._stack = ExitStack()

    def __enter__(self) -> Composer:
        self._refuse_bad_defaults()
        register()
        self._copies = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tune_")))
        self.write([Layer(self.name, (), self.primary)], {})
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Hydra's advice on where `_self_` stands
        self._stack.enter_context(initialize_config_dir(str(self._copies), version_base="1.3", job_name="tune"))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def groups(self) -> set[str]:
        entries = [entry for folder in self._folders for entry in folder.iterdir() if entry.is_dir()]
        return {entry.name for entry in entries if any(entry.glob("*.yaml"))}

    def options(self, group: str) -> set[str]:
        return {path.stem for folder in self._folders for path in (folder / group).glob("*.yaml")}

    def compose(self, overrides: list[str]) -> DictConfig:
        with readable_errors(self.primary.where()):
            return compose(self.name, [self._search_path(), *overrides])

    def select(self, choices: list[str], name: str | None = None) -> Selection:
        """What a composition of this recipe (or of a written one that it inherits) merges, without merging it."""
        key = (name or self.name, *choices)
        if key not in self._selections:
            self._selections[key] = self._select(choices, name or self.name)
        return self._selections[key]

    def _select(self, choices: list[str], name: str) -> Selection:
        loader = GlobalHydra.instance().config_loader()
        with readable_errors(self.primary.where()):
            merged = loader.compute_defaults_list(name, [self._search_path(), *choices], RunMode.RUN)
        selection = Selection([], OmegaConf.structured(RunConfig))
        for entry in merged.defaults:
            entry_name = entry.config_path or ""
            section = tuple(entry.package.split(".")) if entry.package else ()
            if entry_name.startswith("schema/"):
                _, group, schema = entry_name.split("/")
                if not (len(section) == 1 and group in NAMED):  # it names no entry, which `compose_run` reports
                    with readable_errors(self.primary.where()):
                        OmegaConf.update(selection.skeleton, entry.package, SCHEMAS[group][schema])
            elif path := self._find(entry_name):
                selection.layers.append(Layer(entry_name, section, self._read(path)))
        return selection

    def write(self, layers: list[Layer], drop: dict[str, set[KeyPath]]) -> None:
        """Put copies of these files, each less its dropped values, in front of the real ones."""
        for layer in layers:
            path = self._copies / f"{layer.name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(layer.file.without(drop.get(layer.name, set())), encoding="utf-8")

    def _search_path(self) -> str:
        return f"hydra.searchpath={json.dumps([f'file://{folder}' for folder in self._folders], ensure_ascii=False)}"

    def _find(self, name: str) -> Path | None:
        """The file behind a name in a defaults list; None for the dataclasses of `store.py` and Hydra's own."""
        if name == self.name:
            return self.primary.path
        return next((path for folder in self._folders if (path := folder / f"{name}.yaml").is_file()), None)

    def _read(self, path: Path) -> YamlFile:
        if path not in self._files:
            self._files[path] = YamlFile(path)
        return self._files[path]

    def _refuse_bad_defaults(self) -> None:
        problems = self._defaults_problems(self.primary, (self.primary.path,))
        if not self._inherits_root(self.primary) and not problems:
            problems = [
                Problem(self.primary.where(), "does not begin from the schema", "put `defaults: [run]` on top")
            ]
        if (self.primary.path.parent / f"{ROOT_SCHEMA}.yaml").exists():
            fix = "rename that file; `run` is the schema's name"
            problems.append(Problem(self.primary.where(), f"lies beside a file named {ROOT_SCHEMA}.yaml", fix))
        if problems:
            raise ConfigError(problems)

    def _defaults_problems(self, file: YamlFile, chain: tuple[Path, ...]) -> list[Problem]:
        """All names in the defaults list of a recipe, and of those that it inherits, that lead nowhere."""
        problems = []
        for entry in file.defaults():
            where = file.where(entry.line)
            if not entry.group:
                problems += self._parent_problems(entry, where, chain)
            elif "/" not in entry.group and not any("?" in name or "$" in name for name in entry.options):
                problem = choice_problem(entry.group, list(entry.options), self, where)
                problems += [problem] if problem else []
        return problems

    def _parent_problems(self, entry: Default, where: str, chain: tuple[Path, ...]) -> list[Problem]:
        name = entry.options[0]
        if name in (ROOT_SCHEMA, "_self_"):
            return []
        path = self._find(name)
        if path is None:
            names = [found.stem for folder in self._folders for found in folder.glob("*.yaml")]
            return [
                Problem(where, f"there is no recipe {name!r}", f"{did_you_mean(name, names)}`tune ls` lists them")
            ]
        if path in chain:
            return [Problem(where, f"{name} inherits itself", "give this file another name than what it inherits")]
        return self._defaults_problems(self._read(path), (*chain, path))

    def _inherits_root(self, file: YamlFile) -> bool:
        names = [entry.options[0] for entry in file.defaults() if not entry.group]
        paths = [self._find(name) for name in names if name not in (ROOT_SCHEMA, "_self_")]
        return ROOT_SCHEMA in names or any(self._inherits_root(self._read(path)) for path in paths if path)
