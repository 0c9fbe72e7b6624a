"""Questions to a backend: through the cache, drawn as often as wanted, and again where an answer cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunecli.config.errors import UserError
from tunecli.config.judge import LanguageJudgeConfig, Read
from tunecli.judging import verdicts
from tunecli.judging.backend import Ask, Backend, Reply
from tunecli.judging.cache import Cache, key_of
from tunecli.judging.questions import Question, digest


@dataclass(slots=True)
class Counts:
    """Of answers, whether from the cache or not."""

    questions: int = 0
    answers: int = 0
    from_cache: int = 0
    unreadable: int = 0
    """answers that gave no verdict, each of which was asked for again while `judge.retries` lasted"""
    failed: int = 0
    """questions that have no verdict in the end"""


@dataclass(frozen=True, slots=True)
class Verdict:
    probabilities: tuple[float, ...] | None
    """of each choice, over all that was drawn; None: no answer could be read"""
    consistency: float | None = None
    """how likely two answers to the question agree; None: that is not known"""
    mass: float | None = None
    """how much of all probability the verdicts had; None of votes"""
    reasons: tuple[str, ...] = ()
    problem: str = ""


class Asking:
    def __init__(self, config: LanguageJudgeConfig, backend: Backend, cache: Cache, seed: int) -> None:
        self.config = config
        self.backend = backend
        self.cache = cache
        self.seed = seed
        self.counts = Counts()
        self._logprobs = config.read is not Read.votes

    def verdicts(self, questions: Sequence[Question]) -> list[Verdict]:
        """In the order of the questions, of which each is asked once.

        Raises:
            UserError: the backend gives no answers, or no log-probabilities where these are asked for.
        """
        unique = list(dict.fromkeys(questions))
        self.counts.questions += len(unique)
        drawn: list[list[Reply]] = [[] for _ in unique]
        if self._logprobs:
            self._draw(unique, drawn, range(len(unique)), logprobs=True)
        if votes := [i for i, replies in enumerate(drawn) if self._needs_votes(replies)]:
            self._refuse_votes()
            for i in votes:
                drawn[i] = []
            self._draw(unique, drawn, votes, logprobs=False)
        found = {question: self._verdict(question, replies) for question, replies in zip(unique, drawn, strict=True)}
        self.counts.failed += sum(verdict.probabilities is None for verdict in found.values())
        return [found[question] for question in questions]

    def _draw(
        self, questions: list[Question], drawn: list[list[Reply]], which: Sequence[int], *, logprobs: bool
    ) -> None:
        """Fill `drawn` of the questions `which`."""
        for draw in range(self._num_draws(logprobs)):
            wanted = [i for i in which if not logprobs or not drawn[i] or _is_weighed(drawn[i])]
            for i, reply in zip(wanted, self._read([questions[i] for i in wanted], draw, logprobs), strict=True):
                drawn[i].append(reply)
            if logprobs and self.config.read is Read.auto and any(not _is_weighed(drawn[i]) for i in wanted):
                self._logprobs = False  # the server has none: from here on it is not asked for them

    def _needs_votes(self, replies: Sequence[Reply]) -> bool:
        return not _is_weighed(replies) or (not self._logprobs and all(r.probabilities is None for r in replies))

    def _refuse_votes(self) -> None:
        if self.config.read is Read.logprobs:
            fix = "judge.read=votes, or a server that answers with log-probabilities"
            raise UserError(f"{self.backend.name} gives no log-probabilities", where="judge.read", fix=fix)

    def _num_draws(self, logprobs: bool) -> int:
        return 1 if logprobs and not self.config.chain_of_thought else self.config.num_votes

    def _read(self, questions: list[Question], draw: int, logprobs: bool) -> list[Reply]:
        """One answer to each, asked for again while it cannot be read."""
        replies = self._replies(questions, draw, 0, logprobs)
        for attempt in range(1, self.config.retries + 1):
            again = [i for i, reply in enumerate(replies) if reply.probabilities is None and not reply.problem]
            if not again:
                break
            more = self._replies([questions[i] for i in again], draw, attempt, logprobs)
            for i, reply in zip(again, more, strict=True):
                replies[i] = reply
        return replies

    def _replies(self, questions: list[Question], draw: int, attempt: int, logprobs: bool) -> list[Reply]:
        asks = [self._ask(question, draw, attempt, logprobs) for question in questions]
        keys = [key_of(self.backend.identity, ask) for ask in asks]
        found = self.cache.get(keys)
        missing = [i for i, key in enumerate(keys) if key not in found]
        self.counts.answers += len(asks)
        self.counts.from_cache += len(asks) - len(missing)
        new = ((keys[missing[i]], reply) for i, reply in self.backend.answer([asks[i] for i in missing]))
        if not missing:
            return self._counted([found[key] for key in keys])
        if self.backend.together:
            found |= dict(kept := list(new))
            self.cache.put(kept)
        else:
            for key, reply in new:
                self.cache.put([(key, reply)])
                found[key] = reply
        return self._counted([found[key] for key in keys])

    def _counted(self, replies: list[Reply]) -> list[Reply]:
        self.counts.unreadable += sum(reply.probabilities is None for reply in replies)
        return replies

    def _ask(self, question: Question, draw: int, attempt: int, logprobs: bool) -> Ask:
        weighed = logprobs and not question.reasoned and not attempt
        ask = Ask(
            question,
            logprobs=logprobs,
            temperature=0.0 if weighed else self.config.temperature,
            max_new_tokens=self.config.max_new_tokens,
            seed=0,
        )
        if weighed:
            return ask
        again = ask.temperature or (1.0 if attempt else 0.0)  # the same answer would come again
        return replace(ask, seed=int(digest([self.seed, draw, attempt]), 16) % 2**31, temperature=again)

    def _verdict(self, question: Question, replies: list[Reply]) -> Verdict:
        read = [reply.probabilities for reply in replies if reply.probabilities is not None]
        reasons = tuple(reply.text for reply in replies if question.reasoned and reply.text)
        if not read:
            return Verdict(None, reasons=reasons, problem=next((r.problem for r in replies if r.problem), ""))
        masses = [reply.mass for reply in replies if reply.mass is not None]
        return Verdict(
            tuple(sum(each) / len(read) for each in zip(*read, strict=True)),
            verdicts.agreement(read),
            sum(masses) / len(masses) if masses else None,
            reasons,
        )


def _is_weighed(replies: Sequence[Reply]) -> bool:
    """Whether they tell probabilities; those that cannot be read tell nothing about that."""
    return bool(replies) and all(reply.mass is not None or reply.probabilities is None for reply in replies)
