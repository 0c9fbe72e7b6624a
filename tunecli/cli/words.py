"""The words after a verb: `recipe=NAME` and overrides."""

from __future__ import annotations

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
