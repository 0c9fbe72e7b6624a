"""What the `reward` group gets wrong; see `tunecli.config.checks`. What a reward model says of itself is checked by
`tunecli.rewards`, which can read it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tunecli.config.data_files import is_local
from tunecli.config.errors import Problem
from tunecli.config.model_path import is_folder_name
from tunecli.config.reward import CustomConfig, RewardEntry, RewardModelConfig, Rule, RulesConfig
from tunecli.config.run import RunConfig
from tunecli.config.stage import PPOConfig

PARAMETERS = {Rule.length: "length", Rule.regex: "pattern", Rule.exact_match: "column"}
"""rule -> the field that it needs, and no other rule reads"""
EXAMPLES = {"length": "100", "pattern": "'^Yes'", "column": "answer"}


def reward_problems(config: RunConfig) -> Iterator[Problem]:
    if not isinstance(config.stage, PPOConfig):
        if config.reward:
            names = ", ".join(config.reward)
            what = f"has {names}, and stage={config.stage.name} asks nobody what an answer is worth"
            yield Problem("reward", what, "leave the group out, or stage=ppo")
        return
    if not config.reward:
        yield Problem(
            "reward",
            "stage ppo needs one",
            "+reward=reward_model, or `- reward: [reward_model]` in the defaults list",
        )
    for name, reward in config.reward.items():
        key = f"reward.{name}"
        if not (math.isfinite(reward.weight) and reward.weight):
            yield Problem(f"{key}.weight", f"is {reward.weight}", "a number other than 0")
        yield from CHECKS[reward.kind](key, reward)


def _reward_model(key: str, reward: RewardEntry) -> Iterator[Problem]:
    assert isinstance(reward, RewardModelConfig)
    path = reward.path
    if not path:
        fix = f"tune run recipe=reward_sentiment makes one; then {key}.path=outputs/reward_sentiment/latest"
        yield Problem(f"{key}.path", "it is not said which reward model", fix)
    elif (is_local(path) or is_folder_name(path)) and not Path(path).expanduser().exists():
        fix = "PATH of what exists; tune run recipe=reward_sentiment makes one"
        yield Problem(f"{key}.path", f"{path} does not exist", fix)
    if reward.max_length < 1:
        yield Problem(f"{key}.max_length", f"is {reward.max_length}", "a number greater than 0")


def _rules(key: str, reward: RewardEntry) -> Iterator[Problem]:
    assert isinstance(reward, RulesConfig)
    for rule, name in PARAMETERS.items():
        value = getattr(reward, name)
        if rule is reward.rule and value is None:
            what = f"{key}.rule={rule.value} needs it"
            yield Problem(f"{key}.{name}", what, f"{key}.{name}={EXAMPLES[name]}, say")
        elif rule is not reward.rule and value is not None:
            what = f"does nothing with {key}.rule={reward.rule.value}"
            yield Problem(f"{key}.{name}", what, f"{key}.rule={rule.value}, or {key}.{name}=null")
    if reward.length is not None and reward.length < 1:
        yield Problem(f"{key}.length", f"is {reward.length}", "a number greater than 0")
    if reward.pattern is not None:
        try:
            re.compile(reward.pattern)
        except re.error as error:
            yield Problem(f"{key}.pattern", f"is no regular expression: {error}", "one in Python's grammar")


def _custom(key: str, reward: RewardEntry) -> Iterator[Problem]:
    assert isinstance(reward, CustomConfig)
    module, _, function = reward.custom.partition(":")
    if not module or not function:
        yield Problem(f"{key}.custom", f"{reward.custom!r} names no function", f"{key}.custom=my_module:my_function")


CHECKS: dict[str, Callable[[str, RewardEntry], Iterator[Problem]]] = {
    "reward_model": _reward_model,
    "rules": _rules,
    "custom": _custom,
}
