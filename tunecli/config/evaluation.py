"""The `evaluation` section: what is measured besides the validation loss, every `train.eval_every` steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Combine(Enum):
    mean = "mean"
    vote = "vote"


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    exact_match: int = 0
    """Validation examples whose answer is generated (greedily) and compared with that of the row."""
    choices: list[str] = field(default_factory=list)
    """All possible answers, as in [positive, negative]: how often the right one is the most likely of them."""
    prompts: list[str] = field(default_factory=list)
    """Questions to answer; what the model says is shown and kept in samples.jsonl."""
    max_new_tokens: int = 64
    """Longest generated answer."""
    temperature: float = 0.0
    """Of the answers to `prompts`; 0 takes the most likely token each time."""
    combine: Combine = Combine.mean
    """How the answers of several adapters to one question become one (`data.adapter_column="*"`): by the mean of the
    choices' log-probabilities, or by votes. Generated answers are always voted on."""
