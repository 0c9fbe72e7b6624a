"""Rules that a program can check, each a function of (completion, columns of the prompt's row) -> a number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from tunecli.config.errors import UserError
from tunecli.config.reward import RewardEntry, Rule, RulesConfig

Columns = dict[str, Any]


def length(completion: str, columns: Columns, config: RulesConfig) -> float:
    """1 at so many characters; what is missing or too much counts by its share."""
    assert config.length is not None
    return max(0.0, 1.0 - abs(len(completion) - config.length) / config.length)


def regex(completion: str, columns: Columns, config: RulesConfig) -> float:
    assert config.pattern is not None
    return float(re.search(config.pattern, completion) is not None)


def exact_match(completion: str, columns: Columns, config: RulesConfig) -> float:
    """Raises UserError where the row has no such column."""
    if config.column not in columns:
        names = ", ".join(name for name in columns if name != "prompt") or "none"
        raise UserError(
            f"a prompt has no column {config.column!r} (it has {names})",
            where="reward",
            fix="name a column of the data in the rule's `column`",
        )
    return float(completion.strip() == str(columns[config.column]).strip())


def json_valid(completion: str, columns: Columns, config: RulesConfig) -> float:
    try:
        json.loads(completion)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


RULES: dict[Rule, Callable[[str, Columns, RulesConfig], float]] = {
    Rule.length: length,
    Rule.regex: regex,
    Rule.exact_match: exact_match,
    Rule.json_valid: json_valid,
}


def build(name: str, config: RewardEntry) -> Callable[[list[Any], list[str], list[Columns]], list[float]]:
    assert isinstance(config, RulesConfig)
    return partial(_scores, config=config)


def _scores(prompts: list[Any], completions: list[str], columns: list[Columns], config: RulesConfig) -> list[float]:
    rule = RULES[config.rule]
    return [rule(completion, row, config) for completion, row in zip(completions, columns, strict=True)]
