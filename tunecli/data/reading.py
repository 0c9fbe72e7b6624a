"""What a model reads of an example, and what it is to predict: one reader for each kind of task.

A reader turns an example into token ids, positions whose output counts, and a target for each of these positions.
Laying several of them side by side is `batching`'s matter. An example may be several sequences, which stay together:
candidates among which the right answer is to be told, a preferred text and a rejected one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tunecli.config.stage import ProblemType
from tunecli.data.encoded import Encoded
from tunecli.data.labels import Labels

PAIR = 2
"""How many numbers a pair has: margin and probability."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Which of the units are one answer together, and which of several answers is right."""

    candidates: Tensor
    """[units] int64: the candidate that each unit is a token of, from 0"""
    questions: Tensor
    """[candidates] int64: the question that each is an answer to, from 0; those of one question together"""
    right: Tensor
    """[questions] int64: the candidate that is right"""
    margins: Tensor | None = None
    """[questions] float32, as the next two; see `tunecli.engine.batch.Batch`"""
    probabilities: Tensor | None = None
    scores: Tensor | None = None
    reference: Tensor | None = None
    """[candidates] float32"""


@dataclass(frozen=True, slots=True)
class Reading:
    input_ids: Tensor
    """[n] int64; several sequences end to end"""
    kept: Tensor
    """[units] positions whose output predicts a target"""
    targets: Tensor
    """[units] or [units, labels], see `tunecli.engine.batch.Batch`"""
    weights: Tensor
    """[units] float32; with `answers` [questions]"""
    token_types: Tensor | None = None
    """[n] int64: 1 in the second text of a pair; None: the model does not tell them apart"""
    starts: tuple[int, ...] = ()
    """where each sequence after the first begins"""
    answers: Answers | None = None
    decoder_input_ids: Tensor | None = None
    """[m] int64: what the decoder of an encoder-decoder reads, whose positions `kept` are then"""
    decoder_starts: tuple[int, ...] = ()
    """where each sequence of these after the first begins"""
    parents: Tensor | None = None
    """[sequences] int64, counted from the first of these; see `tunecli.engine.batch.Batch`"""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [end - start for start, end in pairwise((0, *self.starts, len(self.input_ids)))]

    @property
    def outputs(self) -> list[int]:
        """Positions of each sequence that the model has an output for."""
        if self.decoder_input_ids is None:
            return self.lengths
        borders = (0, *self.decoder_starts, len(self.decoder_input_ids))
        return [end - start for start, end in pairwise(borders)]


Reader = Callable[[Encoded, str, int], Reading]
"""From an example, the name of its source, and its number: its place in the order of training, every repetition
counted, or its index where it is evaluated. What is drawn at random for an example depends on that and the seed."""


def next_tokens(example: Encoded, source: str, number: int = 0) -> Reading:
    """For a causal language model: token i is predicted at position i - 1, the first one by nothing."""
    trained = example.trained[1:]
    targets = example.input_ids[1:][trained]
    return Reading(example.input_ids, trained.nonzero()[:, 0], targets, torch.ones(len(targets)))


Shift = Callable[[Tensor], Tensor]
"""From a target [m] to what the decoder reads when it predicts it [m]: a start token, say, then all but the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTarget:
    """For an encoder-decoder: each token of the target is predicted from the source and the target before it."""

    shift: Shift

    def __call__(self, example: Encoded, source: str, number: int = 0) -> Reading:
        (start,) = example.parts
        return read_and_write(example.input_ids[:start], example.input_ids[start:], self.shift)


def read_and_write(source: Tensor, target: Tensor, shift: Shift) -> Reading:
    """`source` [n] for the encoder, `target` [m] for the decoder."""
    return Reading(
        source,
        kept=torch.arange(len(target)),
        targets=target,
        weights=torch.ones(len(target)),
        decoder_input_ids=shift(target),
    )


class Place(Enum):
    """Where a classifier looks for the whole of a text."""

    first = "first"
    """at the first token: [CLS], or what stands for it"""
    last = "last"
    """at the last token, the only one that has seen all others in a causal model"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeText:
    """For a classifier: one target for the whole."""

    labels: Labels
    problem: ProblemType
    place: Place
    token_types: bool = False
    """whether the model tells the texts of a pair apart"""
    class_weights: Mapping[str, float] | None = None
    """of labels; 1 for those that are missing"""

    def __call__(self, example: Encoded, source: str, number: int = 0) -> Reading:
        ids = example.input_ids
        return Reading(
            ids,
            kept=torch.tensor([0 if self.place is Place.first else len(ids) - 1]),
            targets=self._target(example.labels, source),
            weights=torch.tensor([self._weight(example.labels)]),
            token_types=_token_types(example) if self.token_types else None,
        )

    def _target(self, labels: tuple[str, ...], source: str) -> Tensor:
        if self.problem is ProblemType.regression:
            return torch.tensor([float(labels[0])])
        numbers = [self.labels.number(source, label) for label in labels]
        if self.problem is ProblemType.single_label:
            return torch.tensor(numbers)
        several = torch.zeros(1, len(self.labels.names))
        several[0, numbers] = 1.0
        return several

    def _weight(self, labels: tuple[str, ...]) -> float:
        if self.class_weights is None or self.problem is not ProblemType.single_label:
            return 1.0
        return self.class_weights.get(labels[0], 1.0)


def _token_types(example: Encoded) -> Tensor:
    types = torch.zeros_like(example.input_ids)
    for start in example.parts:
        types[start:] = 1
    return types


@dataclass(frozen=True, slots=True, kw_only=True)
class EachWord:
    """For a tagger: a target for each trained token of each word."""

    labels: Labels
    token_types: bool = False

    def __call__(self, example: Encoded, source: str, number: int = 0) -> Reading:
        lengths = torch.tensor([int(end - start) for start, end in example.spans], dtype=torch.int64)
        numbers = torch.tensor([self.labels.number(source, tag) for tag in example.labels], dtype=torch.int64)
        kept = example.trained.nonzero()[:, 0]
        return Reading(
            example.input_ids,
            kept=kept,
            targets=numbers.repeat_interleave(lengths),
            weights=torch.ones(len(kept)),
            token_types=_token_types(example) if self.token_types else None,
        )


def sides_of(example: Encoded) -> list[slice]:
    """Where each answer stands in the tokens of a pair; the only one of anything else. Not for encoder-decoders."""
    borders = (0, *example.parts, len(example.input_ids))
    return [slice(start, end) for start, end in pairwise(borders)]


def compared(example: Encoded, candidates: Tensor) -> Answers:
    """A pair as a question with two candidates, of which the first is right; a scored text, or one with feedback, as
    a question with one.

    Args:
        candidates: [units] int64
    """
    is_pair = len(example.numbers) == PAIR
    margin, probability = example.numbers if is_pair else (0.0, 1.0)
    score = math.nan if is_pair else example.numbers[0]
    return Answers(
        candidates,
        questions=torch.zeros(2 if is_pair else 1, dtype=torch.int64),
        right=torch.zeros(1, dtype=torch.int64),
        margins=torch.tensor([margin]),
        probabilities=torch.tensor([probability]),
        scores=torch.tensor([score]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswers:
    """For a model that scores texts: one unit for each text of a pair, or for a scored text."""

    place: Place
    token_types: bool = False
    """whether the model tells a prompt from its completion"""

    def __call__(self, example: Encoded, source: str, number: int = 0) -> Reading:
        sides = sides_of(example)
        kept = [side.start if self.place is Place.first else side.stop - 1 for side in sides]
        return Reading(
            example.input_ids,
            kept=torch.tensor(kept),
            targets=torch.zeros(len(kept)),
            weights=torch.ones(1),
            token_types=_answer_types(example) if self.token_types else None,
            starts=tuple(side.start for side in sides[1:]),
            answers=compared(example, torch.arange(len(kept))),
        )


def _answer_types(example: Encoded) -> Tensor:
    """1 from the completion on in each text that has a prompt."""
    types = torch.zeros_like(example.input_ids)
    for side in sides_of(example):
        start = next((first for first in example.spans[:, 0].tolist() if side.start <= first < side.stop), side.stop)
        types[start : side.stop] = 1
    return types


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTokens:
    """For a language model: the tokens of the completions of a pair, or of one with feedback, each text read alone.
    Those of a text are a candidate, and each of its tokens a unit."""

    shift: Shift | None = None
    """of an encoder-decoder; None: a causal model"""

    def __call__(self, example: Encoded, source: str, number: int = 0) -> Reading:
        return self._next(example) if self.shift is None else self._two_sides(example, self.shift)

    def _next(self, example: Encoded) -> Reading:
        sides = sides_of(example)
        places = example.trained.nonzero()[:, 0]
        starts = tuple(side.start for side in sides[1:])
        return Reading(
            example.input_ids,
            kept=places - 1,
            targets=example.input_ids[places],
            weights=torch.ones(1),
            starts=starts,
            answers=compared(example, torch.searchsorted(torch.tensor((0, *starts)), places, right=True) - 1),
        )

    def _two_sides(self, example: Encoded, shift: Shift) -> Reading:
        parts = sides_of(example)
        sources = [example.input_ids[part] for part in parts[::2]]
        targets = [example.input_ids[part] for part in parts[1::2]]
        lengths = torch.tensor([len(target) for target in targets])
        return Reading(
            torch.cat(sources),
            kept=torch.arange(int(lengths.sum())),
            targets=torch.cat(targets),
            weights=torch.ones(1),
            starts=tuple(accumulate(map(len, sources[:-1]))),
            answers=compared(example, torch.arange(len(targets)).repeat_interleave(lengths)),
            decoder_input_ids=torch.cat([shift(target) for target in targets]),
            decoder_starts=tuple(accumulate(map(len, targets[:-1]))),
        )
