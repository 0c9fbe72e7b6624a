"""What can be known of rewards before a weight is loaded."""

from __future__ import annotations

import json

from tunecli.assembly.data import Data
from tunecli.config.errors import UserError
from tunecli.config.reward import CustomConfig, RewardModelConfig, RulesConfig
from tunecli.config.run import RunConfig
from tunecli.rewards import custom, reward_model


def check_rewards(config: RunConfig, data: Data) -> None:
    """Raises UserError: a reward model is none, or none that can read these prompts; the data have no such column; a
    function is not there."""
    known = data.train or data.validation
    first = json.loads(known[0].columns) if config.reward and known is not None and len(known) else {}
    for name, reward in config.reward.items():
        if isinstance(reward, RewardModelConfig):
            reward_model.check(name, reward, chats=isinstance(first.get("prompt"), list))
        elif isinstance(reward, CustomConfig):
            custom.build(name, reward)
        elif isinstance(reward, RulesConfig) and reward.column is not None and first and reward.column not in first:
            names = ", ".join(column for column in first if column != "prompt") or "none"
            raise UserError(
                f"the prompts have no column {reward.column!r}",
                where=f"reward.{name}.column",
                fix=f"they have: {names}",
            )
