"""`tune predict`: what a model says of every row of a file, in the order of the rows. A row that cannot be used is
told where its prediction would stand, and loses none of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from tunecli.assembly.data import Data
from tunecli.assembly.positions import within_positions
from tunecli.assembly.readers import batching_of
from tunecli.config.counted import counted
from tunecli.config.data import DataConfig, Overlong, Side, SourceConfig, training_sources
from tunecli.config.data_checks import formats_for
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.config.scored import OF_FILE, scored
from tunecli.config.stage import SFTConfig, Task, Turns, VerbalizeConfig
from tunecli.data.dataset import LOOKED_AT
from tunecli.data.encode import CHUNK_ROWS, RowEncoder
from tunecli.data.examples import Example, Unusable
from tunecli.data.feed import Window, window_of
from tunecli.data.labelled import words_with_tokens
from tunecli.data.labels import NUMBER
from tunecli.data.prompts import trained_on_raw_text
from tunecli.data.rows import BadRow, Row
from tunecli.data.source import read_rows
from tunecli.data.templates import apply_chat_template_choice
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding
from tunecli.evaluation import records as lines
from tunecli.evaluation.answers import answer_all, prompt_of, question
from tunecli.evaluation.ensemble import most_votes, same_questions
from tunecli.evaluation.kinds import Kind
from tunecli.evaluation.predictions import predict as logits_of
from tunecli.evaluation.records import Record
from tunecli.report.run_files import read_run
from tunecli.scoring import Session, allowed_for, implied, open_session, split_stage
from tunecli.scoring import rows as data_rows
from tunecli.scoring.subject import STAGES_OF, Subject, asked_as, find_subject
from tunecli.scoring.unlabelled import Unlabelled, choose
from tunecli.stages.verbalize import answers as verbalized

ROW = " row "
TOGETHER = 64
"""Rows that are answered between two looks at the progress, of language models."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be predicted, before any weight is loaded."""

    subject: Subject
    config: RunConfig
    source: SourceConfig
    format: Unlabelled
    encoding: Encoding
    task: str
    num_rows: int


def plan(path: str, file: str, words: Sequence[str] = (), task: str | None = None) -> Plan:
    """
    Args:
        words: `key=value`, and `stage=NAME` for a model of somebody else's.
        task: which of the tasks of a model the rows are of, where it has several.

    Raises:
        UserError: no such model or file, no format reads it, or the task is not one of the model's.
    """
    stage, overrides = split_stage(words)
    if launching := next((word for word in overrides if word.startswith("launch.")), None):
        raise UserError("predictions are made by one process", where=launching, fix="leave it out")
    subject = find_subject(path, stage or implied(overrides))
    if subject.kind is Kind.preference:  # it learnt from answers, and gives some as a language model does
        subject = find_subject(path, STAGES_OF[subject.config.stage.task][0])
    data = replace(
        subject.config.data,
        **{name: getattr(DataConfig(path=None), name) for name in OF_FILE},
        path=file,
        mix=[],
        validation=None,
        streaming=False,
    )
    if not subject.trained:
        data = replace(data, format="auto")
    config = scored(replace(subject.config, data=data), overrides, allowed_for(subject)).config
    config, _ = within_positions(config)
    subject, config = _answering(asked_as(subject, config), config)
    (source,) = training_sources(config.data)
    apply_chat_template_choice(subject.tokenizer, config.data.chat_template)
    first, number = _first(source, config)
    label = _stand_in(subject, task)
    format = choose(
        source.format,
        source.columns,
        first,
        subject.kind,
        label,
        raw=_goes_on_with_text(subject),
        known=formats_for(config.stage.reads),
    )
    return Plan(subject, config, source, format, _encoding(subject, config), task or "", number)


def _answering(subject: Subject, config: RunConfig) -> tuple[Subject, RunConfig]:
    """A model of documents goes on with a text, as a language model does; and the labels of words for them.

    Raises:
        UserError: it has nothing to say that could be predicted.
    """
    if subject.kind is Kind.document:
        if config.stage.task is not Task.causal_lm:
            raise UserError(
                "predicts tokens that are missing in a text, and gives no answers",
                where=subject.source.path,
                fix="tune eval measures it; stage.templates=['{text} It was {mask}.'] asks it for labels",
            )
        config = replace(config, stage=SFTConfig())
        return replace(subject, config=replace(subject.config, stage=config.stage)), config
    if isinstance(config.stage, VerbalizeConfig):
        subject = replace(subject, labels=data_rows.labels_of_words(subject))
    return subject, config


def predict(plan: Plan, proceed: Callable[[float], bool] = lambda done: True) -> Iterator[Record]:
    """One record for each row, in order; of a row that cannot be used file, row and `error`."""
    session = open_session(plan.subject, plan.config)
    encoder = RowEncoder(plan.format, plan.subject.tokenizer, plan.encoding)  # type: ignore[arg-type]
    rows = read_rows(plan.source, plan.config.data.sample_by)
    done = 0
    size = TOGETHER if plan.subject.kind is Kind.text else CHUNK_ROWS
    while chunk_rows := list(islice(rows, size)):
        chunk = encoder(chunk_rows)
        window = window_of(chunk, plan.task)
        found = _predicted(session, plan, window, chunk_rows) if len(window) else {}
        errors = {f"{each['source']}{ROW}{each['row']}": each for each in chunk.left_out}
        for row in chunk_rows:
            yield found[row.where] if row.where in found else _error(row, errors)
        done += len(chunk_rows)
        proceed(done / max(plan.num_rows, 1))


def check(errors: Sequence[Record], number: int) -> None:
    """Raises UserError where rows could not be used, once all others are done."""
    if errors:
        first = errors[0]
        raise UserError(
            f"{len(errors):,} of {counted(number, 'row')} could not be used; the first: {first['error']}",
            where=f"{first['file']}{ROW}{first['row']}",
            fix="mend these rows; all others are predicted",
        )


def _first(source: SourceConfig, config: RunConfig) -> tuple[dict[str, Any], int]:
    """The columns of the first rows, each with its first value, and the number of all rows.

    Raises:
        UserError: there is no row that can be read.
    """
    values: dict[str, Any] = {}
    bad: BadRow | None = None
    number = 0
    for row in read_rows(source, config.data.sample_by):
        number += 1
        if isinstance(row, BadRow):
            bad = bad or row
        elif number <= LOOKED_AT:
            values |= {name: value for name, value in row.values.items() if values.get(name) is None}
    if not values:
        if bad is not None:
            raise UserError(bad.what, where=bad.where, fix=bad.fix)
        raise UserError("holds no rows", where=source.path, fix="check the file")
    return values, number


def _stand_in(subject: Subject, task: str | None) -> str:
    if subject.labels is None:
        return ""
    tasks = list(subject.labels.by_task)
    if len(tasks) > 1 and task not in tasks:
        what = "the model has several tasks" if task is None else f"{task!r} is no task of the model"
        raise UserError(what, where=subject.source.path, fix=f"--task {' or '.join(tasks)}")
    label = subject.labels.of(task or "")[0]
    return "0" if label == NUMBER or subject.kind is Kind.regression else label


def _goes_on_with_text(subject: Subject) -> bool:
    """Of a language model: it was trained on plain text, or has no chat template."""
    run, run_dir = subject.source.run, subject.source.run_dir
    if subject.kind is not Kind.text or run is None or run_dir is None:
        return not subject.tokenizer.chat_template
    formats = read_run(run_dir).environment.get("data", {}).get("train", {}).get("formats", [run.data.format])
    return trained_on_raw_text(run.data, [each.partition(",")[0].partition(" ")[0] for each in formats])


def _encoding(subject: Subject, config: RunConfig) -> Encoding:
    """As in training; a language model is asked for the last answer, and its question is never cut."""
    encoding = subject.encoding(config)
    if subject.kind is not Kind.text:
        return encoding
    return replace(encoding, train_on_prompt=False, turns=Turns.last, overlong=Overlong.drop)


def _predicted(session: Session, plan: Plan, window: Window, rows: Sequence[Row | BadRow]) -> dict[str, Record]:
    """File and row -> record."""
    subject = plan.subject
    data = Data(subject.tokenizer, None, None, subject.labels)
    batching = batching_of(session.config, data, session.policy, num_processes=1, process_index=0)
    groups: list[list[int]] | None = None
    if subject.kind is Kind.text:
        groups = same_questions(window)
        found = _answered(session, window, groups)
    else:
        assert subject.labels is not None
        if isinstance(session.config.stage, VerbalizeConfig):
            combine = session.config.evaluation.combine
            logits = verbalized(session.model, window, batching, session.accelerator, subject.labels, combine)
        else:
            logits = logits_of(session.model, window, batching, session.accelerator)
        contents = _contents(plan.format, rows)
        if subject.kind is Kind.tags:
            text = TextEncoder(subject.tokenizer)
            found, groups = lines.of_tags(
                logits,
                window,
                subject.labels,
                contents,
                lambda words: words_with_tokens(words, text),
                expected=False,
                from_the_left=plan.config.data.truncation_side is Side.right,
            )
        else:
            groups = same_questions(window) if isinstance(session.config.stage, VerbalizeConfig) else None
            found = lines.of_texts(
                logits, window, subject.labels, subject.kind, contents, expected=False, groups=groups
            )
    lines.add_adapters(found, window, list(plan.encoding.adapters), groups)
    return {f"{record['file']}{ROW}{record['row']}": record for record in found}


def _answered(session: Session, window: Window, groups: Sequence[Sequence[int]]) -> list[Record]:
    tokenizer = session.subject.tokenizer
    asked = [question(window, i) for i in range(len(window))]
    with session.accelerator.autocast():
        said = answer_all(session.policy, tokenizer, asked, session.config.evaluation.max_new_tokens)
    records, encoder = [], TextEncoder(tokenizer)
    for group in groups:
        prompt = prompt_of(asked[group[0]].prompt, encoder)
        records.append(lines.place(window.origin(group[0])) | {"prompt": prompt})
        records[-1]["predicted"] = most_votes([said[i] for i in group])
    return records


def _contents(format: Unlabelled, rows: Sequence[Row | BadRow]) -> Callable[[str], Example | None]:
    found: dict[str, Example] = {}
    for row in rows:
        if isinstance(row, Row):
            try:
                found[row.where] = format(row.values)
            except Unusable:
                continue
    return found.get


def _error(row: Row | BadRow, errors: dict[str, dict[str, Any]]) -> Record:
    place: Record = {"file": row.source, "row": row.number}
    if isinstance(row, BadRow):
        return place | {"error": row.what}
    return place | {"error": errors[row.where]["what"] if row.where in errors else "nothing of it can be read"}
