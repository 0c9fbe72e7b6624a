"""`tune eval`: how well a run, an adapter or a model does on a data set, how sure that is, and what it said of every
row.

The numbers are those of the evaluation during training, from the same code: the stage measures, here without a
training feed. What it predicted is written down row by row, and everything else (intervals, tables, comparisons) is
computed from these lines. The generalisation gap is the score on as many training rows, drawn by seed, minus the
score on the scored rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from tunecli.assembly.data import Data
from tunecli.assembly.positions import within_positions
from tunecli.assembly.stage import build_setting
from tunecli.config.data import Side, validation_share
from tunecli.config.run import RunConfig
from tunecli.config.scored import ALLOWED, UNTRAINED, Scored, scored
from tunecli.config.stage import VerbalizeConfig
from tunecli.data import about
from tunecli.data.labelled import words_with_tokens
from tunecli.data.labels import Labels
from tunecli.data.sample import drawn
from tunecli.data.text_encoder import TextEncoder
from tunecli.engine.distributed import make_accelerator, make_deterministic
from tunecli.engine.precision import MIXED_PRECISION
from tunecli.engine.stage import Evaluation
from tunecli.evaluation import records as lines
from tunecli.evaluation.ensemble import same_questions
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.measures import by_task
from tunecli.evaluation.records import Record
from tunecli.evaluation.tables import Table, table_of
from tunecli.evaluation.uncertainty import LEAST, Metric, metrics_of
from tunecli.models.self_test import Wrapped
from tunecli.ops.bootstrap import DRAWS
from tunecli.peft_methods.reference import reference_of_result
from tunecli.scoring import rows as data_rows
from tunecli.scoring.rows import Rows
from tunecli.scoring.subject import Subject, asked_as, base_subject, find_subject, load_wrapped
from tunecli.stages import STAGES

Proceed = Callable[[str, float], bool]
"""Is told what is done and its share, asked by all ranks together."""


@dataclass(frozen=True, slots=True)
class Gap:
    examples: int
    """training rows that were drawn"""
    train: dict[str, float]
    difference: dict[str, float]
    """score on training rows minus score on the scored rows"""


@dataclass(frozen=True, slots=True)
class Scores:
    subject: str
    stage: str
    kind: Kind
    data: dict[str, Any]
    """name, paths, rows, left_out"""
    metrics: dict[str, Metric]
    tables: list[Table]
    gap: Gap | None
    records: list[Record]
    notes: list[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "stage": self.stage,
            "kind": self.kind.value,
            "data": self.data,
            "examples": len(self.records),
            "metrics": {
                name: {"value": each.value, "low": each.low, "high": each.high} for name, each in self.metrics.items()
            },
            "interval": {
                "level": 0.95,
                "method": "percentile bootstrap; of shares of examples Wilson's score interval",
                "resamples": DRAWS,
                "least_examples": LEAST,
                "seed": 0,
            },
            "tables": [table.as_json() for table in self.tables],
            "gap": None
            if self.gap is None
            else {"examples": self.gap.examples, "train": self.gap.train, "difference": self.gap.difference},
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Session:
    """A model that is ready to be asked."""

    subject: Subject
    config: RunConfig
    accelerator: Accelerator
    policy: Wrapped
    model: Any
    """`policy` as accelerate wants it: under autocast"""
    note: str

    def evaluate(self, data: Data, proceed: Callable[[float], bool], *, all_answers: bool) -> Evaluation:
        """What the stage measures on `data.validation`."""
        setting = build_setting(self.config, data, self.policy, self.accelerator)
        if getattr(self.config.stage, "has_reference", False):
            setting = replace(setting, reference=reference_of_result(self.policy.lm, self.config.peft))
        if all_answers:
            setting.evaluator.shown = len(data.validation or ())
        return STAGES[self.config.stage.name](setting).evaluate(self.model, proceed)


def split_stage(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """`stage=NAME`, which says what a model of somebody else's is, and the other overrides."""
    stages = [word.partition("=")[2] for word in words if word.startswith("stage=")]
    return next(iter(stages), None), [word for word in words if not word.startswith("stage=")]


def choose(path: str, words: Sequence[str]) -> tuple[Subject, Scored]:
    """What is scored, and on which data.

    Raises:
        UserError: one of them is not there, or they do not fit.
    """
    stage, overrides = split_stage(words)
    return _chosen(find_subject(path, stage or implied(overrides)), overrides)


def choose_base(run: RunConfig, words: Sequence[str]) -> tuple[Subject, Scored]:
    """The same of the model that a run starts from, asked as the run's result would be."""
    stage, overrides = split_stage(words)
    return _chosen(base_subject(run, stage), overrides)


def _chosen(subject: Subject, overrides: list[str]) -> tuple[Subject, Scored]:
    chosen = chosen_data(subject, overrides)
    return asked_as(subject, chosen.config), chosen


def chosen_data(subject: Subject, overrides: list[str]) -> Scored:
    """Which rows, read no further than the model has positions."""
    chosen = scored(subject.config, overrides, allowed_for(subject))
    return replace(chosen, config=within_positions(chosen.config)[0])


def allowed_for(subject: Subject) -> tuple[str, ...]:
    """What can be set: beginnings of keys."""
    return ALLOWED if subject.trained else UNTRAINED


def implied(overrides: Sequence[str]) -> str | None:
    """Templates and words for labels say what a model is asked."""
    asked = any(word.startswith(("stage.templates=", "stage.verbalizer=")) for word in overrides)
    return "verbalize" if asked else None


def open_session(subject: Subject, config: RunConfig) -> Session:
    """Load the model, one on each rank."""
    cpu = not torch.cuda.is_available()
    make_deterministic(cpu=cpu)
    accelerator = make_accelerator(cpu=cpu, mixed_precision=MIXED_PRECISION[subject.precision(config)])
    policy, note = load_wrapped(subject, config, accelerator)
    placed = config.model.device_map is None
    model = accelerator.prepare_model(policy, device_placement=placed, evaluation_mode=True)
    return Session(subject, config, accelerator, policy, model, note)


def score(
    path: str,
    words: Sequence[str] = (),
    *,
    gap: bool = True,
    proceed: Proceed = lambda what, done: True,
    show_progress: bool = False,
) -> Scores:
    """Score what `path` names.

    Args:
        words: `data=NAME`, `key=value`, and `stage=NAME` for a model of somebody else's.
        gap: score training rows too.

    Raises:
        UserError: no such model or data, rows without labels, labels that the model does not know.
    """
    return score_chosen(path, *choose(path, words), gap=gap, proceed=proceed, show_progress=show_progress)


def score_chosen(
    name: str,
    subject: Subject,
    chosen: Scored,
    *,
    gap: bool = False,
    proceed: Proceed = lambda what, done: True,
    show_progress: bool = False,
) -> Scores:
    """Score `subject`, which is called `name`.

    Raises:
        UserError: rows that cannot be used, or labels that the model does not know.
    """
    started = time.monotonic()
    balanced = bool(getattr(subject.config.stage, "balanced", False))
    rows = data_rows.read(subject, chosen, with_training=gap or balanced, show_progress=show_progress)
    session = open_session(subject, chosen.config)
    data = Data(subject.tokenizer, rows.train, rows.scored, rows.labels)
    found = session.evaluate(data, lambda done: proceed("scoring", done), all_answers=True)
    records = _records(session, rows, found)
    trained = _gap(session, data, found, lambda done: proceed("training rows", done)) if gap else None
    return Scores(
        subject=name,
        stage=chosen.config.stage.name,
        kind=subject.kind,
        data=_about(chosen, rows),
        metrics=_metrics(found, records, subject.kind),
        tables=_tables(records, subject.kind, rows.labels),
        gap=trained,
        records=records,
        notes=_notes(session, rows, chosen, gap=gap),
        seconds=time.monotonic() - started,
    )


def _records(session: Session, rows: Rows, found: Evaluation) -> list[Record]:
    subject, examples, labels = session.subject, rows.scored, rows.labels
    windows: list[list[int]] | None = None
    if subject.kind is Kind.document:
        records = lines.of_documents(examples, subject.tokenizer)
    elif subject.kind is Kind.preference:
        contents = data_rows.contents(session.config.data, rows).get
        records = lines.of_judged(found.predictions, examples, contents)
    elif subject.kind is Kind.text:
        windows = same_questions(examples)
        asked = lines.prompt_and_answer(examples, subject.tokenizer)
        records = lines.of_answers(examples, windows, found.right, found.samples, asked)
        lines.add_text_scores(records, session.config.evaluation)
    else:
        assert labels is not None
        contents = data_rows.contents(session.config.data, rows).get
        if subject.kind is Kind.tags:
            encoder = TextEncoder(subject.tokenizer)
            records, windows = lines.of_tags(
                found.predictions,
                examples,
                labels,
                contents,
                lambda words: words_with_tokens(words, encoder),
                from_the_left=session.config.data.truncation_side is Side.right,
            )
        elif subject.kind is Kind.reward:
            records = lines.of_judged(found.predictions, examples, contents)
        else:
            windows = same_questions(examples) if isinstance(session.config.stage, VerbalizeConfig) else None
            records = lines.of_texts(found.predictions, examples, labels, subject.kind, contents, groups=windows)
    assert found.losses is not None
    lines.add_losses(records, found.losses, windows)
    lines.add_adapters(records, examples, list(subject.encoding(session.config).adapters), windows)
    return records


def _metrics(found: Evaluation, records: Sequence[Record], kind: Kind) -> dict[str, Metric]:
    """Those of training first, then what else the records tell."""
    sure = metrics_of(records, kind)
    metrics: dict[str, Metric] = {}
    for name, value in plain(found.metrics).items():
        each = sure.get(name)
        known = each is not None and each.low is not None and each.high is not None
        metrics[name] = Metric(value, min(each.low, value), max(each.high, value)) if known else Metric(value)
    return metrics | {name: each for name, each in sure.items() if name not in metrics}


def plain(metrics: dict[str, float]) -> dict[str, float]:
    """Without `eval/`."""
    return {name.removeprefix("eval/"): value for name, value in metrics.items()}


def _tables(records: Sequence[Record], kind: Kind, labels: Labels | None) -> list[Table]:
    if labels is None:
        return []
    tables = (
        table_of([records[i] for i in rows], kind, labels.of(task), task) for task, rows in by_task(records).items()
    )
    return [table for table in tables if table is not None]


def _gap(session: Session, data: Data, found: Evaluation, proceed: Callable[[float], bool]) -> Gap | None:
    if data.train is None or data.validation is None:
        return None
    sample = drawn(data.train, len(data.validation), session.config.seed)
    quiet = replace(session.config, evaluation=replace(session.config.evaluation, prompts=[]))
    other = replace(session, config=quiet)
    measured = other.evaluate(replace(data, validation=sample), proceed, all_answers=False)
    train, held_out = plain(measured.metrics), plain(found.metrics)
    return Gap(len(sample), train, {name: train[name] - held_out[name] for name in train if name in held_out})


def _about(chosen: Scored, rows: Rows) -> dict[str, Any]:
    summary = rows.scored.summary
    return {
        "name": chosen.name,
        "paths": [source.path for source in rows.sources],
        "share": None if chosen.all_rows else validation_share(chosen.config.data),
        "examples": len(rows.scored),
        "truncated": summary["truncated"],
        "left_out": summary["left_out"],
        "fingerprints": summary["fingerprints"],
    }


def _notes(session: Session, rows: Rows, chosen: Scored, *, gap: bool) -> list[str]:
    notes = [session.note] if session.note else []
    notes += [what for what, _ in about.losses(chosen.config.data, rows.scored)]
    if gap and rows.train is None:
        notes.append(f"no generalisation gap: {_why_no_training(session.subject)}")
    return notes


def _why_no_training(subject: Subject) -> str:
    if not subject.trained:
        run = subject.source.run
        return "what it was trained on is not known" if run is None else f"it was trained as {run.stage.name}"
    return "its rows were streamed" if subject.config.data.streaming else "its training rows cannot be read any more"
