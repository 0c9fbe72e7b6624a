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
    """Validation examples whose answer is generated and compared with that of the row."""
    rouge: int = 0
    """Validation examples whose generated answer is scored with ROUGE-1, ROUGE-2 and ROUGE-L (F1, 0 to 1)."""
    bleu: int = 0
    """Validation examples whose generated answers are scored together with BLEU (0 to 100)."""
    chrf: int = 0
    """Validation examples whose generated answers are scored together with chrF (0 to 100)."""
    bleu_tokenize: str = "auto"
    """What BLEU takes for words: sacrebleu's 13a (most languages), zh, char, intl or none; auto: zh if most letters
    of the right answers are Chinese, else 13a."""
    num_beams: int = 1
    """Beams of the answers to validation examples; 1 takes the most likely token each time."""
    choices: list[str] = field(default_factory=list)
    """All possible answers, as in [positive, negative]: how often the right one is the most likely of them."""
    prompts: list[str] = field(default_factory=list)
    """Questions to answer; what the model says is shown and kept in samples.jsonl."""
    max_new_tokens: int = 64
    """Longest generated answer."""
    temperature: float = 0.0
    """Of the answers to `prompts`; 0 takes the most likely token each time."""
    retain: list[str] = field(default_factory=list)
    """What else the model should still be able to do, each as it stands behind `tune eval RUN`, as in
    ["data=sentiment_tweets", "stage=pretrain data=tiny_stories data.max_samples=200"]: asked of base and result once
    training is over, and compared in the report."""
    combine: Combine = Combine.mean
    """How the answers of several adapters to one question become one (`data.adapter_column="*"`): by the mean of the
    choices' log-probabilities, or by votes. Generated answers are always voted on."""

    @property
    def generated(self) -> int:
        """Validation examples that an answer is generated for."""
        return max(self.exact_match, self.rouge, self.bleu, self.chrf)
