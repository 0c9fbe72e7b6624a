"""What scores answers: a module each, a row in `REWARDS`, a schema in `config/reward.py` and a YAML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunecli.config.errors import UserError
from tunecli.config.reward import RewardEntry
from tunecli.rewards import custom, reward_model, rules

Reward = Callable[[list[Any], list[str], list[dict[str, Any]]], list[float]]
"""(prompts, each a text or messages; completions; the other columns of the prompts' rows) -> one score each"""

REWARDS: dict[str, Callable[[str, RewardEntry], Reward]] = {
    "reward_model": reward_model.build,
    "rules": rules.build,
    "custom": custom.build,
}
"""kind -> from the name of an entry and its configuration to what scores"""


@dataclass(frozen=True, slots=True)
class Scores:
    total: list[float]
    """the weighted sum for each answer"""
    parts: dict[str, list[float]]
    """name of a reward -> its scores, unweighted"""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    rewards: dict[str, Reward]
    weights: dict[str, float]

    def __call__(self, prompts: list[Any], completions: list[str], columns: list[dict[str, Any]]) -> Scores:
        """Raises UserError where a reward does not give one finite number for each answer."""
        parts = {name: reward(prompts, completions, columns) for name, reward in self.rewards.items()}
        for name, scores in parts.items():
            _check(name, scores, len(completions))
        weighted = [[self.weights[name] * score for score in scores] for name, scores in parts.items()]
        return Scores([sum(each) for each in zip(*weighted, strict=True)], parts)


def _check(name: str, scores: list[float], wanted: int) -> None:
    if len(scores) != wanted:
        what = f"gives {len(scores)} scores for {wanted} answers"
        raise UserError(what, where=f"reward.{name}", fix="one number for each answer, in their order")
    if bad := [score for score in scores if not math.isfinite(score)]:
        raise UserError(f"gives {bad[0]} as a score", where=f"reward.{name}", fix="a finite number for each answer")


def build_rewards(configs: Mapping[str, RewardEntry]) -> WeightedSum:
    """Raises UserError where one cannot be had."""
    return WeightedSum(
        {name: REWARDS[config.kind](name, config) for name, config in configs.items()},
        {name: config.weight for name, config in configs.items()},
    )
