"""Several adapters for one task answer the same question, and their answers become one: by votes, or by the mean of
their log-probabilities (Lester et al., 2021, section 6, "Prompt Ensembling", which takes votes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from tunecli.config.evaluation import Combine
from tunecli.data.batching import Examples


def same_questions(examples: Examples) -> list[list[int]]:
    """The examples by question: those of one row with different adapters together, every other one by itself."""
    groups: list[list[int]] = []
    origin = ""
    seen: set[int] = set()
    for i in range(len(examples)):
        adapter = int(examples.adapters[i])
        again = adapter >= 0 and adapter not in seen and examples.origin(i) == origin
        if again:
            groups[-1].append(i)
        else:
            groups.append([i])
            seen = set()
            origin = examples.origin(i) if adapter >= 0 else ""
        seen.add(adapter)
    return groups


def most_votes(answers: Sequence[str]) -> str:
    """The most frequent one; of several, that which was given first."""
    return Counter(answers).most_common(1)[0][0]


def best_choice(scores: Tensor, combine: Combine) -> int:
    """Index of the choice.

    Args:
        scores: [adapters, choices] log-probabilities.
    """
    mean = scores.mean(0)
    if combine is Combine.mean:
        return int(mean.argmax())
    votes = Counter(scores.argmax(1).tolist())
    most = max(votes.values())
    tied = [choice for choice, count in votes.items() if count == most]
    return max(tied, key=lambda choice: float(mean[choice]))
