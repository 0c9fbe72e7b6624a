"""The rows that are scored, as the model was trained to read them, and what stands in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunecli.config.data import DataConfig, SourceConfig, training_sources, validation_share, validation_source
from tunecli.config.errors import UserError
from tunecli.config.scored import Scored
from tunecli.config.stage import VerbalizeConfig
from tunecli.data.examples import Example, Unusable
from tunecli.data.formats import Format
from tunecli.data.labels import Labels, check_rows, run_labels
from tunecli.data.mixture import Mixture, build
from tunecli.data.rows import Row
from tunecli.data.shots import few
from tunecli.data.source import read_rows
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.verbalizing import Verbalizer
from tunecli.evaluation.answers import check_choices
from tunecli.scoring.subject import Subject, is_regression


@dataclass(frozen=True, slots=True)
class Rows:
    scored: Mixture
    train: Mixture | None
    """what the model was trained on; None where that is not known or not wanted"""
    sources: list[SourceConfig]
    """of `scored`"""
    labels: Labels | None
    """that the model knows, or has words for"""


def read(subject: Subject, chosen: Scored, *, with_training: bool, show_progress: bool) -> Rows:
    """
    Args:
        with_training: read training rows too; where they are no longer there, `train` is None.

    Raises:
        UserError: there are no such rows, one cannot be used, or has a label that the model does not know.
    """
    encoding = subject.encoding(chosen.config)
    data = chosen.config.data
    train, validation = build(data, subject.tokenizer, encoding, show_progress=show_progress)
    examples = train if chosen.all_rows else validation
    if chosen.own and validation is None:
        raise UserError(
            "was trained without validation data",
            where=subject.source.path,
            fix="name what to score it on: data.path=FILE, or data=NAME",
        )
    assert examples is not None
    own = None
    if chosen.own:
        own = train if data.shots is None or train is None else few(train, data.shots, chosen.config.seed)
    elif with_training or (subject.trained and _words_come_from_rows(subject)):
        own = _own_training(subject, show_progress)
    labels = _labels(subject, own, examples)
    _check_words(subject, labels)
    _check(subject, chosen, examples, labels)
    return Rows(examples, own if with_training else None, _sources(data, all_rows=chosen.all_rows), labels)


def _words_come_from_rows(subject: Subject) -> bool:
    stage = subject.config.stage
    return isinstance(stage, VerbalizeConfig) and not stage.verbalizer


def _labels(subject: Subject, train: Mixture | None, examples: Mixture | None) -> Labels | None:
    """Labels that are words themselves are those of the rows that the model was trained on; of a model that was not,
    those of the rows at hand."""
    stage = subject.config.stage
    if subject.labels is not None or not isinstance(stage, VerbalizeConfig):
        return subject.labels
    if subject.trained and train is None:
        raise UserError(
            "the labels are words of its training rows, which cannot be read any more",
            where=subject.source.path,
            fix="stage.verbalizer='{LABEL: WORD, LABEL: WORD}'",
        )
    return run_labels(subject.config.data if subject.trained else DataConfig(path=""), stage, train or examples, None)


def _check_words(subject: Subject, labels: Labels | None) -> None:
    """Raises UserError where two labels have the same tokens."""
    if labels is not None and isinstance(subject.config.stage, VerbalizeConfig):
        Verbalizer(TextEncoder(subject.tokenizer), subject.encoding(subject.config)).check(labels.by_task)


def labels_of_words(subject: Subject) -> Labels:
    """Those that a model has words for, where no row says any.

    Raises:
        UserError: they cannot be known.
    """
    if subject.labels is None and not subject.trained:
        fix = "stage.verbalizer='{LABEL: WORD, LABEL: WORD}'"
        raise UserError("which words stand for labels is not said", where=subject.source.path, fix=fix)
    train = None if subject.labels is not None else _own_training(subject, show_progress=False)
    labels = _labels(subject, train, None)
    assert labels is not None
    _check_words(subject, labels)
    return labels


def _own_training(subject: Subject, show_progress: bool) -> Mixture | None:
    own = subject.config.data
    if not subject.trained or own.streaming:
        return None
    try:
        found = build(own, subject.tokenizer, subject.encoding(subject.config), show_progress=show_progress)[0]
        return few(found, own.shots, subject.config.seed) if found is not None and own.shots is not None else found
    except UserError:
        if getattr(subject.config.stage, "balanced", False):
            raise  # the loss weighs labels by how often they came up
        return None


def _check(subject: Subject, chosen: Scored, examples: Mixture, labels: Labels | None) -> None:
    if labels is not None and not is_regression(subject.config.stage):
        try:
            check_rows(labels, examples)
        except UserError as error:
            known = ", ".join(labels.names[:20])
            if len(labels.by_task) > 1:
                tasks = ", ".join(labels.by_task)
                fix = f"say of which task the rows are ({tasks}): 'data.mix=[{{path: FILE, task: NAME}}]'"
                raise UserError(error.what, where="data", fix=fix) from None
            fix = f"the model knows {known}: mend the row, or name another column: data.columns.label=COLUMN"
            raise UserError(error.what, where=error.where, fix=fix) from None
    if labels is None and chosen.config.evaluation.choices:
        check_choices(examples, subject.tokenizer, chosen.config.evaluation.choices)


def _sources(data: DataConfig, *, all_rows: bool) -> list[SourceConfig]:
    source = validation_source(data)
    if all_rows or source is None or validation_share(data) is not None:
        return training_sources(data)
    return [source]


def contents(data: DataConfig, rows: Rows) -> dict[str, Example]:
    """File and row -> what the row holds, of the scored rows."""
    wanted = {rows.scored.origin(i) for i in range(len(rows.scored))}
    found: dict[str, Example] = {}
    for source, format in _pairs(rows.sources, rows.scored.formats):
        for row in read_rows(source, data.sample_by):
            if isinstance(row, Row) and row.where in wanted:
                try:
                    found[row.where] = format(row.values)
                except Unusable:
                    continue
    return found


def _pairs(sources: Sequence[SourceConfig], formats: Sequence[Format]) -> list[tuple[SourceConfig, Format]]:
    return list(zip(sources, formats, strict=True))
