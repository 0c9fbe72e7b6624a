"""Who may import whom. A package imports from itself and from lower rows: never up, never sideways."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tunecli"

ROWS: dict[str, set[str]] = {
    "config": set(),
    "ops": set(),
    "engine": {"config", "ops"},
    "models": {"config", "ops", "engine"},
    "data": {"config", "ops", "engine"},
    "peft_methods": {"config", "ops", "engine", "models", "data"},
    "evaluation": {"config", "ops", "engine", "models", "data", "peft_methods"},
    "rewards": {"config", "ops", "engine", "models", "data", "peft_methods"},
    "judging": {"config", "ops", "engine", "models", "data", "peft_methods", "evaluation"},
    "stages": {"config", "ops", "engine", "models", "data", "peft_methods", "evaluation"},
    "labelling": {"config", "ops", "engine", "models", "data", "peft_methods", "assembly", "judging"},
    "report": {"config", "ops", "engine", "models", "data", "peft_methods", "evaluation", "stages"},
    "assembly": {"config", "ops", "engine", "models", "data", "peft_methods", "evaluation", "stages"} | {"rewards"},
    "run": {"config", "engine", "models", "data", "peft_methods", "stages", "report", "assembly"},
    "prepare": {"config", "engine", "peft_methods", "assembly", "retain"},
    "lint": {"config", "data", "models", "peft_methods", "assembly", "retain"},
    "worker": {"config", "engine", "run", "retain", "labelling"},
    "preview": {"config", "engine", "data", "report", "assembly"},
    "chat": {"config", "engine", "models", "data", "peft_methods", "assembly"},
    "merge": {"config", "engine", "models", "data", "peft_methods", "report", "assembly"},
    "scoring": {"config", "ops", "engine", "models", "data", "peft_methods", "evaluation", "stages", "report"}
    | {"assembly"},
    "retain": {"config", "engine", "report", "scoring"},
    "push": {"config", "engine", "report"},
    "count": {"config", "models", "peft_methods"},
    "neighbours": {"config", "models", "peft_methods"},
    "launch": {"config"},
    "foreign": {"config"},
    "cli": {"config"},
    "": {"chat", "peft_methods"},
    "__main__": {"cli"},
}
"""Part of the package -> the parts that it may import. "" is `tunecli/__init__.py`."""

INSIDE_FUNCTIONS: dict[str, set[str]] = {
    "cli": {
        "",
        "chat",
        "count",
        "engine",
        "judging",
        "launch",
        "lint",
        "merge",
        "preview",
        "push",
        "report",
        "foreign",
    }
    | {"neighbours", "peft_methods", "scoring"}
}
"""More of them, for imports that run only when a function is called."""

CONFIG_LIBRARIES = {"yaml", "omegaconf", "hydra"}

LIGHT_PARTS = ("cli", "launch", "foreign", "config")
"""Neither torch nor what imports it: they answer before a second has passed."""


def test_every_part_has_a_row():
    parts = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if _is_part(path)}
    assert parts == set(ROWS) - {""}


@pytest.mark.parametrize("part", ROWS)
def test_imports_go_down(part: str):
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports tunecli.{target}"
        for path in _files(part)
        for target, line, inside in _imports(path)
        if target != part and target not in ROWS[part] | (INSIDE_FUNCTIONS.get(part, set()) if inside else set())
    ]
    assert not wrong


def test_models_and_data_never_import_each_other():
    assert "data" not in ROWS["models"] and "models" not in ROWS["data"]


def test_the_launcher_imports_the_configuration_only():
    assert ROWS["launch"] == {"config"} and "launch" not in INSIDE_FUNCTIONS


@pytest.mark.parametrize("part", LIGHT_PARTS)
def test_light_parts_name_no_heavy_library(part: str):
    heavy = {"torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes"}
    found = {(path.name, name) for path in _files(part) for name in _outside_imports(path) if name in heavy}
    assert not found


def test_the_configuration_needs_few_libraries():
    outside = set().union(*(_outside_imports(path) for path in _files("config")))
    assert outside - sys.stdlib_module_names - {"tunecli"} <= CONFIG_LIBRARIES


def test_the_check_sees_every_kind_of_import(tmp_path: Path):
    path = PACKAGE / "cli" / "imagined.py"
    tree = ast.parse(
        "import tunecli.data.source\n"
        "from tunecli import models\n"
        "from ..stages import sft\n"
        "from .. import ops\n"
        "from . import ls\n"
        "if TYPE_CHECKING:\n    from tunecli.engine.loop import train\n"
        "def f():\n    from tunecli import launch as x\n"
        "from tunecli import __version__\n"
    )
    found = {(target, inside) for target, _, inside in _imports_of(tree, path)}
    assert found == {
        *(("data", False), ("models", False), ("stages", False), ("ops", False)),
        *(("cli", False), ("engine", False), ("launch", True), ("", False)),
    }


def _is_part(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").exists()
    return path.suffix == ".py" and path.name != "__init__.py"


def _files(part: str) -> list[Path]:
    if not part:
        return [PACKAGE / "__init__.py"]
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    return _imports_of(ast.parse(path.read_text(encoding="utf-8")), path)


def _imports_of(tree: ast.Module, path: Path) -> Iterator[tuple[str, int, bool]]:
    """Imported part of tunecli, line, and whether the import stands inside a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        for name in _names(node, path):
            if name.split(".")[0] == "tunecli":
                yield _part(name), node.lineno, id(node) in inside


def _names(node: ast.AST, path: Path) -> list[str]:
    """Absolute dotted names of all that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = ("tunecli", *path.relative_to(PACKAGE).parent.parts)
        base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def _part(name: str) -> str:
    """`tunecli.data.source.x` -> `data`; what `tunecli/__init__.py` defines itself -> ""."""
    part = name.split(".")[1] if "." in name else ""
    return part if part in ROWS else ""


def _outside_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name.split(".")[0] for node in ast.walk(tree) for name in _names(node, path)}
