"""The candidate answers of a gap, as a model reads them: for each template one question, for each label one
candidate.

The score of a label is the sum of the log-probabilities of its word's tokens. A masked model predicts all tokens of
a word at once, in as many masks as it has tokens (PET predicts them one after another, the surest first). Labels
share a sequence wherever the model would read the same: words of as many tokens, or words that differ in their last
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from tunecli.data.encoded import Encoded
from tunecli.data.labels import Labels
from tunecli.data.reading import Answers, Reading

Word = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """For examples that `tunecli.data.verbalizing` made."""

    labels: Labels
    words: Sequence[Mapping[str, Word]]
    """for each template, label -> its word"""
    mask: int | None
    """id of the mask; None: a causal model"""

    def __call__(self, example: Encoded, source: str, number: int = 0) -> Reading:
        labels = self.labels.of(source)
        ids, starts = [], []
        kept: list[int] = []
        targets: list[int] = []
        candidates: list[int] = []
        questions: list[int] = []
        right: list[int] = []
        length = 0
        borders = pairwise((0, *example.parts, len(example.input_ids)))
        for question, ((start, end), gap) in enumerate(zip(borders, example.spans.tolist(), strict=True)):
            head, tail = example.input_ids[start : gap[0]], example.input_ids[gap[1] : end]
            right.append(len(questions) + labels.index(example.labels[0]))
            begins: dict[Word, int] = {}
            for label in labels:
                word = self.words[question][label]
                filling = self._filling(word)
                if filling not in begins:
                    begins[filling] = length
                    starts.append(length)
                    ids += [head, torch.tensor(filling, dtype=torch.int64), tail]
                    length += len(head) + len(filling) + len(tail)
                first = begins[filling] + len(head) - (self.mask is None)
                kept += range(first, first + len(word))
                targets += word
                candidates += [len(questions)] * len(word)
                questions.append(question)
        return Reading(
            torch.cat(ids),
            kept=torch.tensor(kept),
            targets=torch.tensor(targets),
            weights=torch.ones(len(right)),
            starts=tuple(starts[1:]),
            answers=Answers(torch.tensor(candidates), torch.tensor(questions), torch.tensor(right)),
        )

    def _filling(self, word: Word) -> Word:
        """What stands in the gap while the tokens of `word` are predicted."""
        return word[:-1] if self.mask is None else (self.mask,) * len(word)

    @property
    def copies(self) -> int:
        """How many sequences are made of one at most."""
        return max(len({self._filling(word) for word in words.values()}) for words in self.words)
