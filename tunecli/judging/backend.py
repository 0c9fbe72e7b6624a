"""What answers a judge's questions: a model here, or a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunecli.judging.questions import Question


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted."""

    question: Question
    logprobs: bool
    """the probabilities of the verdicts, where they can be had; else a vote"""
    temperature: float
    max_new_tokens: int
    """0: nothing is written out"""
    seed: int
    """0 where nothing is drawn"""


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    """what the judge wrote; empty where it was not asked to"""
    probabilities: tuple[float, ...] | None
    """of the verdicts; None: it gave none that can be read"""
    mass: float | None = None
    """how much of all probability the verdicts had together; None of a vote"""
    problem: str = ""
    """why it cannot be read, if asking again does not help"""


@dataclass(slots=True)
class Usage:
    """What the answers cost, those from the cache aside."""

    answers: int = 0
    requests: int = 0
    """to a server, those that failed included"""
    failures: dict[str, int] = field(default_factory=dict)
    """why requests were sent again -> how often"""
    prompt_tokens: int = 0
    written_tokens: int = 0
    seconds: float = 0.0


class Backend(Protocol):
    name: str
    """for people"""
    together: bool
    """answers depend, if only by rounding, on what is asked with them: they are kept all or none"""
    usage: Usage

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on besides the question, in JSON's types."""
        ...

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """Number of the ask and its reply, in any order.

        Raises:
            UserError: some have no answer; those that came before count.
        """
        ...
