"""From what a judge says to probabilities of the verdicts that it can give.

Tokens: the verdicts are token sequences that may begin alike ("1" and "10" in the digits of SmolLM2). What the
model gives each is the product over its tokens; a verdict that another one begins with counts where it ends there.
The probabilities are then normalised over the verdicts (Lee et al., 2023, section 2.1). Text: a verdict is read only
where nothing else could be meant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdicts of a question as tokens, and which next tokens have to be weighed for them."""

    ids: tuple[Tokens, ...]

    def __post_init__(self) -> None:
        if len(set(self.ids)) < len(self.ids) or not all(self.ids):
            raise ValueError(f"verdicts are not told apart by their tokens: {self.ids}")

    @property
    def next_tokens(self) -> dict[Tokens, list[int]]:
        """What has been said of a verdict -> the tokens that may come next."""
        found: dict[Tokens, dict[int, None]] = {}
        for ids in self.ids:
            for i, token in enumerate(ids):
                found.setdefault(ids[:i], {})[token] = None
        return {said: list(tokens) for said, tokens in found.items()}

    @property
    def sequences(self) -> list[Tokens]:
        """What has to be read behind the question so that all of these are weighed: the longest beginnings."""
        begun = list(self.next_tokens)
        return [
            said for said in begun if not any(len(more) > len(said) and more[: len(said)] == said for more in begun)
        ]

    def probabilities(self, logprobs: Mapping[tuple[Tokens, int], float]) -> tuple[list[float], float]:
        """Of each verdict, adding up to 1; and how much the model gave all of them together.

        Args:
            logprobs: (what has been said, next token) -> log-probability.
        """
        going_on = self.next_tokens
        weights = []
        for ids in self.ids:
            weight = math.exp(sum(logprobs[ids[:i], token] for i, token in enumerate(ids)))
            further = sum(math.exp(logprobs[ids, token]) for token in going_on.get(ids, ()))
            weights.append(weight * max(0.0, 1.0 - further))
        return normalised(weights)


def normalised(weights: Sequence[float]) -> tuple[list[float], float]:
    """Shares that add up to 1, and the sum. All weights 0: equal shares."""
    total = math.fsum(weights)
    if total <= 0 or not math.isfinite(total):
        return [1 / len(weights)] * len(weights), 0.0
    return [weight / total for weight in weights], total


def read(text: str, verdict: str, choices: Sequence[str], *, reasoned: bool) -> int | None:
    """Which of `choices` a written answer gives; None: it cannot be told.

    Without reasons the answer is the verdict and nothing else; with them its last line is. What the verdict begins
    with may stand before it, asterisks around it and a full stop behind it.
    """
    line = text.strip()
    if reasoned:
        line = line.splitlines()[-1].strip() if line else ""
    options = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
    begin = f"(?:{re.escape(verdict)})" + ("" if reasoned else "?")
    found = re.fullmatch(rf"\**\s*{begin}\s*\**\s*\(?({options})\)?\s*\**\.?\s*\**", line, re.IGNORECASE)
    return None if found is None else list(choices).index(found[1])


def certain(choice: int, number: int) -> list[float]:
    """Of a vote."""
    return [float(i == choice) for i in range(number)]


def expectation(probabilities: Sequence[float], choices: Sequence[str]) -> float:
    """Of verdicts that are numbers."""
    return math.fsum(share * float(choice) for share, choice in zip(probabilities, choices, strict=True))


def better(first: Sequence[float], second: Sequence[float]) -> float:
    """The probability that a draw of `first` is a later verdict than one of `second`, draws of the same counting
    half; swapping the two gives the complement."""
    wins = math.fsum(a * b for i, a in enumerate(first) for j, b in enumerate(second) if i > j)
    losses = math.fsum(a * b for i, a in enumerate(first) for j, b in enumerate(second) if i < j)
    return 0.5 + (wins - losses) / 2


def agreement(draws: Sequence[Sequence[float]]) -> float | None:
    """How likely two answers to the same question give the same verdict; None of a single vote.

    Args:
        draws: the probabilities that each answer gives; [1, 0] for a vote.
    """
    if len(draws) == 1:
        (only,) = draws
        return None if max(only) == 1.0 else math.fsum(share * share for share in only)
    pairs = [(i, j) for i in range(len(draws)) for j in range(i)]
    same = [math.fsum(a * b for a, b in zip(draws[i], draws[j], strict=True)) for i, j in pairs]
    return math.fsum(same) / len(pairs)
