"""A function of the user's own as a reward: (prompts, completions, columns) -> a number for each."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from tunecli.config.errors import UserError
from tunecli.config.reward import CustomConfig, RewardEntry
from tunecli.data.formats.custom import PREFIX, load


def build(name: str, config: RewardEntry) -> Callable[[list[Any], list[str], list[dict[str, Any]]], list[float]]:
    """Raises UserError where there is no such function."""
    assert isinstance(config, CustomConfig)
    where = f"reward.{name}.custom"
    try:
        function = load(PREFIX + config.custom)
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix.replace("data.format", where)) from error

    def scores(prompts: list[Any], completions: list[str], columns: list[dict[str, Any]]) -> list[float]:
        try:
            found = function(prompts, completions, columns)
        except Exception as error:
            line = traceback.format_exception_only(error)[-1].strip()
            last = traceback.extract_tb(error.__traceback__)[-1]
            fix = (
                f"mend {last.filename}, line {last.lineno}; it is given lists: prompts, completions, dicts of columns"
            )
            raise UserError(f"{config.custom} fails: {line}", where=where, fix=fix) from error
        try:
            return [float(score) for score in found]
        except (TypeError, ValueError):
            fix = "one number for each answer, in their order"
            raise UserError(f"{config.custom} gives {found!r:.60}", where=where, fix=fix) from None

    return scores
