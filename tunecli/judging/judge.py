"""A judge: from pairs of answers to probabilities, from answers to scores.

A comparison is asked in both orders and averaged: `probability(A, B) = (P(1 | A, B) + P(2 | B, A)) / 2`, so that
`probability(A, B) + probability(B, A) = 1` whatever the judge's liking for a place (Lee et al., 2023, section 2.1.1).
Scores compare answers by their distributions: the probability that a draw for the one is higher, ties counting half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tunecli.config.errors import UserError
from tunecli.config.judge import (
    JudgeConfig,
    LanguageJudgeConfig,
    LocalJudgeConfig,
    Mode,
    OpenAIJudgeConfig,
    RewardModelJudgeConfig,
)
from tunecli.config.judge_files import constitution_of, template_of
from tunecli.config.paths import cache_dir
from tunecli.judging import questions, verdicts
from tunecli.judging.asking import Asking, Counts, Verdict
from tunecli.judging.backend import Backend, Usage
from tunecli.judging.cache import Cache
from tunecli.judging.questions import Answered, Compared, Question

CACHE = "judgments.sqlite"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All probabilities are those of the first answer being the better one."""

    probability: float | None
    """debiased; None: the judge gave no verdict in one of the orders"""
    as_first: float | None = None
    """where it was shown first; None: there is no order"""
    as_second: float | None = None
    """where it was shown second"""
    consistency: float | None = None
    """how likely two answers to one question agree"""
    mass: float | None = None
    """how much of all probability the verdicts had"""
    reasons: tuple[str, ...] = ()
    principles: tuple[str, ...] = ()
    problem: str = ""

    def is_tie(self, margin: float) -> bool:
        return self.probability is not None and abs(self.probability - 0.5) <= margin


@dataclass(frozen=True, slots=True)
class Score:
    value: float | None
    """None: the judge gave no verdict"""
    distribution: tuple[float, ...] | None = None
    """over the scores that it can give; None: it gives a number"""
    consistency: float | None = None
    mass: float | None = None
    reasons: tuple[str, ...] = ()
    problem: str = ""


class Judge(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> dict[str, Any]:
        """What its judgments depend on, in JSON's types."""
        ...

    @property
    def usage(self) -> Usage: ...

    @property
    def counts(self) -> Counts: ...

    @property
    def cost(self) -> float | None:
        """Of what was asked so far; None where that has no price."""
        ...

    @property
    def scores(self) -> bool:
        """Whether it can `score`."""
        ...

    def compare(self, pairs: Sequence[Compared]) -> list[Comparison]: ...

    def score(self, items: Sequence[Answered]) -> list[Score]: ...


def open_judge(config: JudgeConfig, *, seed: int) -> Judge:
    """No weights are loaded before a question is not in the cache.

    Args:
        seed: of principles, votes and reasons.

    Raises:
        UserError: there is no such model.
    """
    cache = Cache(Path(config.cache).expanduser() if config.cache else cache_dir() / CACHE)
    if isinstance(config, LanguageJudgeConfig):
        return LanguageJudge(config, _backend(config), cache, seed)
    from tunecli.judging.reward_model import RewardModelJudge

    assert isinstance(config, RewardModelJudgeConfig)
    return RewardModelJudge(config, cache)


def _backend(config: LanguageJudgeConfig) -> Backend:
    if isinstance(config, OpenAIJudgeConfig):
        from tunecli.judging.openai import OpenAI

        return OpenAI(config)
    from tunecli.judging.local import Local

    assert isinstance(config, LocalJudgeConfig)
    return Local(config)


@dataclass(slots=True)
class LanguageJudge:
    """Asked in words."""

    config: LanguageJudgeConfig
    backend: Backend
    cache: Cache
    seed: int
    _asking: Asking = field(init=False)

    def __post_init__(self) -> None:
        self._asking = Asking(self.config, self.backend, self.cache, self.seed)

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def usage(self) -> Usage:
        return self.backend.usage

    @property
    def counts(self) -> Counts:
        return self._asking.counts

    @property
    def cost(self) -> float | None:
        return getattr(self.backend, "cost", None)

    @property
    def scores(self) -> bool:
        return self.config.mode is Mode.score

    @property
    def identity(self) -> dict[str, Any]:
        template = template_of(self.config)
        asked = [template.preamble, template.body, template.ask, template.reason, template.verdict]
        shown = [[example.values, example.reason, example.verdict] for example in template.examples]
        config = self.config
        return self.backend.identity | {
            "mode": config.mode.value,
            "template": questions.digest([asked, shown]),
            "constitution": questions.digest([principle.compare for principle in self._constitution]),
            "num_principles": config.num_principles,
            "chain_of_thought": config.chain_of_thought,
            "read": config.read.value,
            "num_votes": config.num_votes,
            "temperature": config.temperature,
            "max_new_tokens": config.max_new_tokens,
            "retries": config.retries,
        }

    @property
    def _constitution(self) -> tuple[Any, ...]:
        return constitution_of(self.config.constitution) if self.config.mode is Mode.principles else ()

    def compare(self, pairs: Sequence[Compared]) -> list[Comparison]:
        """Each in both orders.

        Raises:
            UserError: the judge does not answer.
        """
        if self.scores:
            items = [Answered(pair.prompt, answer) for pair in pairs for answer in (pair.first, pair.second)]
            found = self.score(items)
            return [compared(first, second) for first, second in zip(found[::2], found[1::2], strict=True)]
        principles = [self._principles(pair) for pair in pairs]
        asked = [
            self._question(shown, principle)
            for pair, drawn in zip(pairs, principles, strict=True)
            for principle in drawn
            for shown in (pair, pair.swapped)
        ]
        told = iter(self._asking.verdicts(asked))
        return [_averaged([(next(told), next(told)) for _ in drawn], drawn) for drawn in principles]

    def score(self, items: Sequence[Answered]) -> list[Score]:
        """
        Raises:
            UserError: it compares only, or does not answer.
        """
        if not self.scores:
            raise UserError("compares answers, and gives no scores", where="judge.mode", fix="judge.mode=score")
        template = template_of(self.config)
        asked = [questions.rate(item, template, reasoned=self.config.chain_of_thought) for item in items]
        return [_score(verdict, template.choices) for verdict in self._asking.verdicts(asked)]

    def _principles(self, pair: Compared) -> list[str]:
        if self.config.mode is not Mode.principles:
            return [""]
        drawn = questions.drawn(self._constitution, self.config.num_principles, pair, self.seed)
        return [principle.compare for principle in drawn]

    def _question(self, pair: Compared, principle: str) -> Question:
        return questions.compare(
            pair, template_of(self.config), reasoned=self.config.chain_of_thought, principle=principle
        )


def _averaged(orders: Sequence[tuple[Verdict, Verdict]], principles: Sequence[str]) -> Comparison:
    """
    Args:
        orders: of each principle what was said of the pair, and of the pair swapped.
    """
    told = [verdict for both in orders for verdict in both]
    reasons = tuple(reason for verdict in told for reason in verdict.reasons)
    named = tuple(filter(None, principles))
    if any(verdict.probabilities is None for verdict in told):
        problem = next((verdict.problem for verdict in told if verdict.problem), "no verdict could be read")
        return Comparison(None, reasons=reasons, principles=named, problem=problem)
    as_first = _mean([both[0].probabilities[0] for both in orders])  # type: ignore[index]
    as_second = _mean([both[1].probabilities[1] for both in orders])  # type: ignore[index]
    return Comparison(
        probability=0.5 + ((as_first - 0.5) + (as_second - 0.5)) / 2,
        as_first=as_first,
        as_second=as_second,
        consistency=_mean_of_known([verdict.consistency for verdict in told]),
        mass=_mean_of_known([verdict.mass for verdict in told]),
        reasons=reasons,
        principles=named,
    )


def compared(first: Score, second: Score) -> Comparison:
    """Of two answers that have a score each."""
    reasons = first.reasons + second.reasons
    if first.value is None or second.value is None:
        return Comparison(None, reasons=reasons, problem=first.problem or second.problem)
    if first.distribution is not None and second.distribution is not None:
        probability = verdicts.better(first.distribution, second.distribution)
    else:
        probability = 1 / (1 + math.exp(min(700.0, second.value - first.value)))
    return Comparison(
        probability,
        consistency=_mean_of_known([first.consistency, second.consistency]),
        mass=_mean_of_known([first.mass, second.mass]),
        reasons=reasons,
    )


def _score(verdict: Verdict, choices: Sequence[str]) -> Score:
    if verdict.probabilities is None:
        return Score(None, reasons=verdict.reasons, problem=verdict.problem or "no verdict could be read")
    value = verdicts.expectation(verdict.probabilities, choices)
    return Score(value, verdict.probabilities, verdict.consistency, verdict.mass, verdict.reasons)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None
