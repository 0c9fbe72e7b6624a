"""`tune score`: what a reward model, or any classifier of one label, thinks of answers: each with its score, pairs
with the scores of both. Rows need not say what these should be; where they do, that is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunecli.assembly.data import Data
from tunecli.assembly.readers import batching_of
from tunecli.config.errors import UserError
from tunecli.config.stage import ClassifyConfig, RewardConfig, ScoreConfig, Task
from tunecli.data.batching import Examples
from tunecli.data.encode import RowEncoder
from tunecli.data.examples import Example, Messages, PromptCompletion, Scored
from tunecli.data.feed import window_of
from tunecli.data.rows import Row
from tunecli.data.templates import apply_chat_template_choice
from tunecli.evaluation import metrics
from tunecli.evaluation.predictions import predict
from tunecli.evaluation.records import Record, lead, of_judged
from tunecli.scoring import Session, chosen_data, open_session, split_stage
from tunecli.scoring import rows as data_rows
from tunecli.scoring.subject import Subject, find_subject

NAMES_DATA = ("data.path=", "data.mix=")


@dataclass(frozen=True, slots=True)
class Judged:
    subject: str
    data: str
    records: list[Record]
    """one for each answer, with `score`; of a pair `chosen`, `rejected` and which is `preferred`"""
    summary: dict[str, float]
    left_out: int
    """rows that cannot be used"""


def find_judge(path: str, words: Sequence[str]) -> tuple[Subject, list[str]]:
    """What gives scores, and the overrides.

    Raises:
        UserError: there is no such model, or it does not give one number for a text.
    """
    stage, overrides = split_stage(words)
    if stage not in (None, "reward"):
        raise UserError(f"gives no scores as {stage}", where="stage", fix="leave it out, or stage=reward")
    subject = find_subject(path)
    own = subject.config.stage
    if own.task is not Task.sequence_classification:
        fix = "a reward model (tune run recipe=smoke_reward), or another classifier of one label"
        raise UserError("has no head that scores a text", where=path, fix=fix)
    if subject.trained and isinstance(own, ClassifyConfig):
        what = "was trained as classify, on texts as they are and not on answers"
        raise UserError(what, where=path, fix=f"tune predict {path} FILE")
    if not isinstance(own, RewardConfig):
        subject = find_subject(path, "reward")
    return replace(subject, config=replace(subject.config, stage=ScoreConfig())), overrides


def score_rows(
    path: str,
    words: Sequence[str] = (),
    *,
    proceed: Callable[[float], bool] = lambda done: True,
    show_progress: bool = False,
) -> Judged:
    """Score every row of a data set.

    Args:
        words: `data=NAME`, `data.path=FILE`, and other settings of the data.

    Raises:
        UserError: no such model or data, or a row that cannot be used.
    """
    subject, overrides = find_judge(path, words)
    config = subject.config
    if any(word.startswith(NAMES_DATA) for word in overrides):  # another file may have other columns
        config = replace(config, data=replace(config.data, format="auto", columns={}))
    chosen = chosen_data(replace(subject, config=config), overrides)
    subject = replace(subject, config=chosen.config)
    rows = data_rows.read(subject, chosen, with_training=False, show_progress=show_progress)
    session = open_session(subject, chosen.config)
    contents = data_rows.contents(session.config.data, rows).get
    found = of_judged(_scores(session, rows.scored, proceed), rows.scored, contents)
    return Judged(path, chosen.name, list(map(_plain, found)), summary(found), len(rows.scored.left_out))


class Asked:
    """A judge that is ready to be shown one answer after another."""

    def __init__(self, path: str, words: Sequence[str], *, raw: bool) -> None:
        """
        Args:
            raw: prompt and answer are plain text; else they go through the chat template, if there is one.

        Raises:
            UserError: no such model.
        """
        subject, overrides = find_judge(path, words)
        words = ["data.path=builtin:smoke_pairs", *overrides]  # of which nothing is read
        chosen = chosen_data(_without_data(subject), words)
        self.subject = replace(subject, config=chosen.config)
        apply_chat_template_choice(subject.tokenizer, chosen.config.data.chat_template)
        self.raw = raw or not subject.tokenizer.chat_template
        self.session = open_session(self.subject, chosen.config)

    def score(self, prompt: str, answer: str) -> float:
        """Raises UserError: nothing can be scored."""
        encoder = RowEncoder(
            _As(self.example(prompt, answer)),  # type: ignore[arg-type]
            self.subject.tokenizer,
            self.subject.encoding(self.session.config),
        )
        chunk = encoder([Row("answer", 1, {})])
        if chunk.left_out:
            raise UserError(chunk.left_out[0]["what"], where="answer", fix=chunk.left_out[0]["fix"])
        return float(_scores(self.session, window_of(chunk, "answer"))[0][0, 0])

    def example(self, prompt: str, answer: str) -> Scored:
        if self.raw:
            return Scored(PromptCompletion(prompt, answer), math.nan)
        question = [{"role": "user", "content": prompt}] if prompt.strip() else []
        chat = [*question, {"role": "assistant", "content": answer}]
        return Scored(Messages(chat, context=len(question)), math.nan)


@dataclass(frozen=True, slots=True)
class _As:
    """A format that reads one example whatever the row is."""

    example: Example

    def __call__(self, values: dict) -> Example:
        return self.example


def _without_data(subject: Subject) -> Subject:
    data = replace(subject.config.data, format="auto", columns={}, validation=None)
    return replace(subject, config=replace(subject.config, data=data))


def _scores(
    session: Session, examples: Examples, proceed: Callable[[float], bool] = lambda done: True
) -> list[np.ndarray]:
    """[texts, 1] of each example."""
    data = Data(session.subject.tokenizer, None, None, session.subject.labels)
    batching = batching_of(session.config, data, session.policy, num_processes=1, process_index=0)
    return predict(session.model, examples, batching, session.accelerator, proceed)


def _plain(record: Record) -> Record:
    """As it is written down: the answer's score under that name, and which of two is preferred."""
    if "chosen" in record:
        ahead = record["chosen"] - record["rejected"]
        preferred = "chosen" if ahead > 0 else "rejected" if ahead < 0 else "neither"
        return {name: value for name, value in record.items() if name not in ("margin", "probability")} | {
            "preferred": preferred
        }
    return {name: value for name, value in record.items() if name != "predicted"} | {"score": record["predicted"]}


def summary(records: Sequence[Record]) -> dict[str, float]:
    """How scores are spread; of pairs how often the right answer is preferred; how far off known scores are."""
    every = [record[key] for record in records for key in ("chosen", "rejected", "predicted") if key in record]
    values = np.array(every)
    found = {
        "answers": len(every),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "lowest": float(values.min()),
        "median": float(np.median(values)),
        "highest": float(values.max()),
    }
    leads = [ahead for record in records if (ahead := lead(record)) is not None]
    known = [record for record in records if "expected" in record]
    if leads:
        found |= {"pairs": len(leads)} | metrics.comparison(np.array(leads))
    if known:
        predicted, expected = (np.array([record[key] for record in known]) for key in ("predicted", "expected"))
        found |= metrics.regression(predicted, expected)
    return found
