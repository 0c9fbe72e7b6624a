"""The `reward` group: an ordered mapping of names to what scores an answer; their weighted sum counts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


@dataclass(kw_only=True, slots=True)
class RewardEntry:
    kind: str = MISSING
    weight: float = 1.0
    """What its scores are multiplied by before they are added up; negative: less is better."""


class Reads(Enum):
    """What of an answer a reward model is shown."""

    conversation = "conversation"
    """Prompt and completion, through its own chat template where they are messages."""
    completion = "completion"
    """The completion alone, as a classifier of texts reads one."""


@dataclass(kw_only=True, slots=True)
class RewardModelConfig(RewardEntry):
    """A trained classifier, frozen: its only logit, or how much likelier one label is than all others."""

    kind: str = "reward_model"
    path: str = ""
    """A run directory (`stage=reward`, `stage=classify`), a model folder or a Hub id."""
    label: str | None = None
    """Of a classifier of several labels: the log-odds of this one. Empty: it has one logit, which is the score."""
    reads: Reads = Reads.conversation
    max_length: int = 1024
    """Longer texts lose their start, in tokens of the reward model."""


class Rule(Enum):
    length = "length"
    """1 at `length` characters, less by the share that is missing or too much, 0 at the least."""
    regex = "regex"
    """1 where `pattern` is found."""
    exact_match = "exact_match"
    """1 where the answer is what column `column` of the prompt's row says, white space around it aside."""
    json_valid = "json_valid"
    """1 where the answer is JSON and nothing else."""


@dataclass(kw_only=True, slots=True)
class RulesConfig(RewardEntry):
    """A rule that a program can check. Each entry is one: +reward@reward.NAME=rules adds another."""

    kind: str = "rules"
    rule: Rule = Rule.length
    length: int | None = None
    """With `rule: length`: characters."""
    pattern: str | None = None
    """With `rule: regex`: a regular expression of Python's."""
    column: str | None = None
    """With `rule: exact_match`: name of a column of the data."""


@dataclass(kw_only=True, slots=True)
class CustomConfig(RewardEntry):
    """A function of your own: (prompts, completions, columns) -> a number for each."""

    kind: str = "custom"
    custom: str = ""
    """`package.module:function`; modules in the current folder are found."""


REWARD_SCHEMAS: dict[str, type[RewardEntry]] = {
    "reward_model": RewardModelConfig,
    "rules": RulesConfig,
    "custom": CustomConfig,
}
