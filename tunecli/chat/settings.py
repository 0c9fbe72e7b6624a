"""How answers are drawn, and `name=value` words that change it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean


@dataclass(frozen=True, slots=True)
class Settings:
    temperature: float = 0.7
    """0: always the most likely token"""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit"""
    max_new_tokens: int = 512
    seed: int | None = None
    """None: another one for each answer"""
    repetition_penalty: float = 1.0

    def __str__(self) -> str:
        values = dataclasses.asdict(self)
        return "  ".join(f"{name}={'none' if value is None else value}" for name, value in values.items())


@dataclass(frozen=True, slots=True)
class _Rule:
    read: Callable[[str], Any]
    fits: Callable[[Any], bool]
    wanted: str
    example: str


def _seed(word: str) -> int | None:
    return None if word == "none" else int(word)


RULES = {
    "temperature": _Rule(float, lambda value: 0 <= value < math.inf, "a number of at least 0", "0.7"),
    "top_p": _Rule(float, lambda value: 0 < value <= 1, "a number above 0 and at most 1", "0.9"),
    "top_k": _Rule(int, lambda value: value >= 0, "a whole number; 0 is no limit", "40"),
    "max_new_tokens": _Rule(int, lambda value: value >= 1, "a whole number of at least 1", "512"),
    "seed": _Rule(_seed, lambda value: value is None or 0 <= value < 2**63, "a whole number, or none", "1"),
    "repetition_penalty": _Rule(float, lambda value: 0 < value < math.inf, "a number above 0; 1 is none", "1.1"),
}


def changed(settings: Settings, word: str) -> Settings:
    """`settings` after a word such as `temperature=0.2`. Raises UserError."""
    name, equals, value = word.partition("=")
    if name not in RULES:
        raise UserError(f"no setting {name!r}", fix=f"{did_you_mean(name, RULES)}settings: {', '.join(RULES)}")
    rule = RULES[name]
    try:
        read = rule.read(value)
        fits = bool(equals) and rule.fits(read)
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"{word}: {name} takes {rule.wanted}", fix=f"{name}={rule.example}, for one")
    return dataclasses.replace(settings, **{name: read})
