"""What is written of a prompt or a pair, by `stage.mode`.

`preference`: answers are drawn and compared (RLAIF; Lee et al., 2023). `given_pairs`: the answers are there already.
`best_of_n`: the answer with the highest score, or that wins against most others (rejection sampling). `revise`: the
model criticises its own answer by a principle and rewrites it (Bai et al., 2022, section 3.1); departs from it in
that critique and revision are asked for in turns of the conversation, through the chat template.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunecli.config.judge_files import constitution_of
from tunecli.config.stage import LabelConfig, Labelling
from tunecli.data.examples import Pair, Prompt, Unusable
from tunecli.judging.judge import Comparison, Judge
from tunecli.judging.questions import Answered, Compared, answered, conversation_of, digest
from tunecli.judging.rows import Found
from tunecli.labelling.policy import Policy
from tunecli.labelling.store import Outcome
from tunecli.labelling.units import Unit

Record = dict[str, Any]
Turns = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Worker:
    """Who does it, and how."""

    stage: LabelConfig
    rows: Sequence[Found]
    policy: Policy | None
    """None: the answers are there already"""
    judge: Judge | None
    """None: nobody is asked"""
    tie_margin: float
    seed: int
    origin: Record
    """which policy, judge and seed: written into every line"""

    def seed_of(self, unit: Unit, *what: Any) -> int:
        return int(digest([self.seed, unit.number, *what]), 16) % 2**31

    def provenance(self, row: int) -> Record:
        return {"provenance": self.rows[row].place | self.origin}


@dataclass(frozen=True, slots=True)
class Samples:
    """Different answers to the prompt of a row."""

    row: int
    prompt: Prompt
    answers: list[str]


def label(worker: Worker, unit: Unit) -> Outcome:
    """
    Raises:
        UserError: the judge does not answer.
    """
    return MODES[worker.stage.mode](worker, unit)


def _preference(worker: Worker, unit: Unit) -> Outcome:
    outcome = Outcome()
    compared: list[tuple[int, Prompt, Compared, tuple[int, int]]] = []
    for samples in _draw(worker, unit, outcome):
        if len(samples.answers) < 2:
            _leave_out(outcome, samples.row, "all answers are the same")
            continue
        for i, j in _pairs(worker, unit, samples):
            prompt = conversation_of(samples.prompt.text)
            pair = Compared(prompt, samples.answers[i], samples.answers[j])
            compared.append((samples.row, samples.prompt, pair, (i, j)))
    assert worker.judge is not None
    judged = worker.judge.compare([pair for _, _, pair, _ in compared])
    for (row, asked, pair, places), found in zip(compared, judged, strict=True):
        swapped = found.probability is not None and found.probability < 0.5
        told = {"samples": list(places[::-1] if swapped else places)}
        _write_pair(worker, outcome, row, asked.text, pair, found, told)
    return outcome


def _given_pairs(worker: Worker, unit: Unit) -> Outcome:
    outcome = Outcome()
    pairs = []
    for row in unit.rows:
        example = worker.rows[row].example
        assert isinstance(example, Pair)
        first, second = answered(example.chosen), answered(example.rejected)
        pairs.append(Compared(first.prompt, first.answer, second.answer))
    assert worker.judge is not None
    for row, pair, found in zip(unit.rows, pairs, worker.judge.compare(pairs), strict=True):
        prompt = pair.prompt if isinstance(pair.prompt, str) else [_turn(*turn) for turn in pair.prompt]
        agrees = {"agrees": found.probability is not None and found.probability > 0.5}
        _write_pair(worker, outcome, row, prompt, pair, found, agrees)
    return outcome


def _best_of_n(worker: Worker, unit: Unit) -> Outcome:
    outcome = Outcome()
    drawn = [samples for samples in _draw(worker, unit, outcome) if samples.answers]
    for samples, values in zip(drawn, _values(worker, drawn), strict=True):
        known = [(value, -i) for i, value in enumerate(values) if value is not None]
        if not known:
            _leave_out(outcome, samples.row, "no verdict")
            continue
        best = -max(known)[1]
        record = _supervised(samples.prompt.text, samples.answers[best])
        told = {"scores": values, "chosen_sample": best}
        _write(outcome, samples.row, record | told | worker.provenance(samples.row))
    return outcome


def _values(worker: Worker, drawn: Sequence[Samples]) -> list[list[float | None]]:
    """Of each answer: its score or, of a judge that compares, the mean probability that it is better than another."""
    judge = worker.judge
    assert judge is not None
    if judge.scores:
        items = [Answered(conversation_of(each.prompt.text), text) for each in drawn for text in each.answers]
        found = iter(judge.score(items))
        return [[next(found).value for _ in each.answers] for each in drawn]
    pairs = [
        Compared(conversation_of(each.prompt.text), each.answers[i], each.answers[j])
        for each in drawn
        for i, j in itertools.combinations(range(len(each.answers)), 2)
    ]
    compared = iter(judge.compare(pairs))
    return [_mean_wins(len(each.answers), compared) for each in drawn]


def _mean_wins(number: int, compared: Any) -> list[float | None]:
    wins: list[list[float]] = [[] for _ in range(number)]
    for i, j in itertools.combinations(range(number), 2):
        probability = next(compared).probability
        if probability is not None:
            wins[i].append(probability)
            wins[j].append(1 - probability)
    if number == 1:
        return [0.5]
    return [sum(each) / len(each) if each else None for each in wins]


def _revise(worker: Worker, unit: Unit) -> Outcome:
    stage, outcome, policy = worker.stage, Outcome(), worker.policy
    assert policy is not None
    started = _draw(worker, unit, outcome, number=1)
    drawn = [samples for samples in started if samples.answers]
    chats = [_as_turns(samples.prompt.text) for samples in drawn]
    answers = [samples.answers[0] for samples in drawn]
    told: list[Record] = [{"original": answer, "critiques": [], "principles": []} for answer in answers]
    constitution = constitution_of(stage.constitution)
    principles = [
        random.Random(digest([worker.seed, samples.prompt.text])).sample(constitution, stage.num_revisions)
        for samples in drawn
    ]
    for step in range(stage.num_revisions):
        asked = [
            [*chat, _turn("assistant", answer), _turn("user", chosen[step].critique)]
            for chat, answer, chosen in zip(chats, answers, principles, strict=True)
        ]
        critiques = _written(worker, asked, worker.seed_of(unit, "critique", step))
        asked = [
            [*turns, _turn("assistant", critique), _turn("user", chosen[step].revise)]
            for turns, critique, chosen in zip(asked, critiques, principles, strict=True)
        ]
        revisions = _written(worker, asked, worker.seed_of(unit, "revise", step))
        answers = [new or old for new, old in zip(revisions, answers, strict=True)]
        for record, critique, chosen in zip(told, critiques, principles, strict=True):
            record["critiques"].append(critique)
            record["principles"].append(chosen[step].critique)
    for samples, answer, record in zip(drawn, answers, told, strict=True):
        whole = _supervised(samples.prompt.text, answer) | record | worker.provenance(samples.row)
        _write(outcome, samples.row, whole)
    return outcome


def _written(worker: Worker, chats: Sequence[Turns], seed: int) -> list[str]:
    assert worker.policy is not None
    ids = [worker.policy.chat_ids(chat) for chat in chats]
    return worker.policy.write(ids, raw=[False] * len(ids), seed=seed)


def _draw(worker: Worker, unit: Unit, outcome: Outcome, number: int | None = None) -> list[Samples]:
    """Different answers to the prompts of all rows that can be asked; the others are left out."""
    policy, number = worker.policy, number or worker.stage.num_samples
    assert policy is not None
    asked: list[tuple[int, Prompt, list[int]]] = []
    for row in unit.rows:
        example = worker.rows[row].example
        assert isinstance(example, Prompt)
        try:
            asked.append((row, example, policy.ids(example)))
        except Unusable as error:
            _leave_out(outcome, row, error.what)
    ids = [each for _, _, each in asked for _ in range(number)]
    raw = [isinstance(prompt.text, str) for _, prompt, _ in asked for _ in range(number)]
    texts = policy.write(ids, raw=raw, seed=worker.seed_of(unit))
    drawn = []
    for place, (row, prompt, _) in enumerate(asked):
        own = texts[place * number : (place + 1) * number]
        answers = [text for text in dict.fromkeys(own) if text.strip()]
        if not answers:
            _leave_out(outcome, row, "all answers are blank")
        drawn.append(Samples(row, prompt, answers))
    return [samples for samples in drawn if samples.answers]


def _pairs(worker: Worker, unit: Unit, samples: Samples) -> list[tuple[int, int]]:
    pairs = list(itertools.combinations(range(len(samples.answers)), 2))
    number = worker.stage.num_pairs
    if number is None or number >= len(pairs):
        return pairs
    return sorted(random.Random(worker.seed_of(unit, "pairs", samples.row)).sample(pairs, number))


def _write_pair(
    worker: Worker,
    outcome: Outcome,
    row: int,
    prompt: str | Turns,
    pair: Compared,
    found: Comparison,
    told: Record,
) -> None:
    """The better answer first, with how sure the judge is of it."""
    if found.probability is None:
        _leave_out(outcome, row, found.problem or "no verdict")
        return
    if worker.stage.drop_ties and found.is_tie(worker.tie_margin):
        _leave_out(outcome, row, "a tie")
        return
    swapped = found.probability < 0.5
    answers = (pair.second, pair.first) if swapped else (pair.first, pair.second)
    chosen, rejected = (_answer(prompt, answer) for answer in answers)
    judgment = {"as_first": found.as_first, "as_second": found.as_second}
    if swapped and found.as_first is not None and found.as_second is not None:
        # Of the better answer: it was shown second where the other one was shown first.
        judgment = {"as_first": 1 - found.as_second, "as_second": 1 - found.as_first}
    record = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "probability": 1 - found.probability if swapped else found.probability,
        "judgment": judgment | {"consistency": found.consistency, "mass": found.mass},
        "reasons": list(found.reasons),
        "principles": list(found.principles),
    }
    _write(outcome, row, record | told | worker.provenance(row))


def _supervised(prompt: str | Turns, answer: str) -> Record:
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": answer}
    return {"messages": [*prompt, _turn("assistant", answer)]}


def _answer(prompt: str | Turns, answer: str) -> str | Turns:
    return answer if isinstance(prompt, str) else [_turn("assistant", answer)]


def _as_turns(prompt: str | Turns) -> Turns:
    return [_turn("user", prompt)] if isinstance(prompt, str) else list(prompt)


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def _write(outcome: Outcome, row: int, record: Record) -> None:
    outcome.records.setdefault(row, []).append(record)


def _leave_out(outcome: Outcome, row: int, why: str) -> None:
    outcome.left_out.setdefault(row, []).append(why)


MODES: dict[Labelling, Callable[[Worker, Unit], Outcome]] = {
    Labelling.preference: _preference,
    Labelling.given_pairs: _given_pairs,
    Labelling.best_of_n: _best_of_n,
    Labelling.revise: _revise,
}
