"""The words after a verb: `recipe=NAME`, overrides, and where results go."""

from __future__ import annotations

from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import recipe_names


def split_recipe(verb: str, words: list[str]) -> tuple[str, list[str]]:
    """The recipe and the overrides.

    Raises:
        UserError: no recipe, or more than one.
    """
    recipes = [word.partition("=")[2] for word in words if word.startswith("recipe=")]
    overrides = [word for word in words if not word.startswith("recipe=")]
    if len(recipes) > 1:
        raise UserError(f"several recipes: {', '.join(recipes)}", fix="name one")
    if not recipes or not recipes[0]:
        meant = next((word for word in overrides if "=" not in word), "NAME")
        hint = (
            did_you_mean(f"recipe={meant}", [f"recipe={name}" for name in recipe_names()]) if meant != "NAME" else ""
        )
        raise UserError("no recipe is named", fix=f"{hint}tune {verb} recipe=NAME; `tune ls` lists the recipes")
    return recipes[0], overrides


EVALUATION = ("result.json", "predictions.jsonl", "report.html")
"""What is written into a folder of results."""


def refuse_taken_file(out: Path, *, force: bool) -> None:
    """Raises UserError before any work is done: `out` is no file that can be written, or there is one."""
    if out.is_dir():
        raise UserError("is a folder", where=f"--out {out}", fix=f"a file in it, such as {out / 'predictions.jsonl'}")
    if out.exists() and not force:
        raise UserError(f"{out} exists already", where="--out", fix="another name, or replace it with --force")


def refuse_taken_folder(out: Path, *, force: bool) -> None:
    """The same of a folder that holds results, of an evaluation or of a run."""
    if out.exists() and not out.is_dir():
        raise UserError("is a file", where=f"--out {out}", fix="the name of a folder")
    if not force and (there := [name for name in EVALUATION if (out / name).exists()]):
        what = f"{out} holds results already: {', '.join(there)}"
        raise UserError(what, where="--out", fix="another folder, or replace them with --force")
