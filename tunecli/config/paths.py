"""Where recipes and option files lie, by name. Only the standard library, so that `tune ls` stays instant."""

from __future__ import annotations

import os
from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean

GROUPS = ("model", "data", "peft", "stage", "reward", "judge", "launch")
NAMED = {"peft": "method", "reward": "kind"}
"""Groups that are an ordered mapping of names to options -> the field that says which option an entry is."""


def config_root() -> Path:
    """Folder of the shipped option files, one subfolder per group."""
    return _shipped("configs")


def recipe_root() -> Path:
    """Folder of the shipped recipes."""
    return _shipped("recipes")


def shipped_asset(path: str) -> str:
    """`assets/...` of the checkout that this package runs from, where the current folder has no such thing."""
    beside = config_root().parent / path
    return str(beside) if path.startswith("assets/") and not Path(path).exists() and beside.exists() else path


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipe_root().glob("*.yaml"))


def option_names(group: str) -> list[str]:
    return sorted(path.stem for path in (config_root() / group).glob("*.yaml"))


def find_recipe(recipe: str) -> Path:
    """The file behind `recipe=`: a path (it holds a slash or ends in .yaml) or the name of a shipped recipe."""
    if "/" in recipe or recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise UserError(f"no such file: {recipe}", where="recipe", fix="`tune ls` lists the shipped recipes")
        return path.resolve()
    path = recipe_root() / f"{recipe}.yaml"
    if not path.is_file():
        hint = did_you_mean(recipe, recipe_names())
        fix = f"{hint}`tune ls` lists the recipes; a file of your own is named by its path: recipe=./{recipe}.yaml"
        raise UserError(f"there is no recipe {recipe!r}", where="recipe", fix=fix)
    return path


def summary(path: Path) -> str:
    """What a recipe or option file says it is: its first comment line that is not a Hydra header."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = line.lstrip("# ").rstrip()
            if line.startswith("#") and text and not text.startswith("@package"):
                return text
    return ""


def display(path: Path) -> str:
    """The path as a person would type it: relative to the current folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def point_latest_at(run_dir: Path, recipe: str) -> None:
    """`outputs/<recipe>/latest`, where the run directory lies in the usual place."""
    if run_dir.parent.name != recipe:
        return
    beside = run_dir.parent / ".latest.partial"
    beside.unlink(missing_ok=True)
    beside.symlink_to(run_dir.name)
    beside.rename(run_dir.parent / "latest")


def judging_file(kind: str, name: str) -> Path:
    """A YAML file for judges: a path (it holds a slash or ends in .yaml), or a shipped one by its name.

    Args:
        kind: templates or constitutions.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    return _judging(kind) / f"{name}.yaml"


def judging_names(kind: str) -> list[str]:
    """Of the shipped ones."""
    return sorted(path.stem for path in _judging(kind).glob("*.yaml"))


def _judging(kind: str) -> Path:
    return Path(__file__).resolve().parents[1] / "judging" / kind


def _shipped(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package.parent / name


def cache_dir() -> Path:
    """Where tokenised data and builtin models are kept: `TUNECLI_CACHE`, else `~/.cache/tunecli`."""
    return Path(os.environ.get("TUNECLI_CACHE") or Path.home() / ".cache" / "tunecli")
