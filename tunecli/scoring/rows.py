"""The rows that are scored, as the model was trained to read them, and what stands in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunecli.config.data import DataConfig, SourceConfig, training_sources, validation_share, validation_source
from tunecli.config.errors import UserError
from tunecli.config.scored import Scored
from tunecli.data.examples import Example, Unusable
from tunecli.data.formats import Format
from tunecli.data.labels import check_rows
from tunecli.data.mixture import Mixture, build
from tunecli.data.rows import Row
from tunecli.data.source import read_rows
from tunecli.evaluation.answers import check_choices
from tunecli.scoring.subject import Subject, is_regression


@dataclass(frozen=True, slots=True)
class Rows:
    scored: Mixture
    train: Mixture | None
    """what the model was trained on; None where that is not known or not wanted"""
    sources: list[SourceConfig]
    """of `scored`"""


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
    _check(subject, chosen, examples)
    if not with_training:
        train = None
    elif not chosen.own:
        train = _own_training(subject, show_progress)
    return Rows(examples, train, _sources(data, all_rows=chosen.all_rows))


def _own_training(subject: Subject, show_progress: bool) -> Mixture | None:
    own = subject.config.data
    if not subject.trained or own.streaming:
        return None
    try:
        return build(own, subject.tokenizer, subject.encoding(subject.config), show_progress=show_progress)[0]
    except UserError:
        if getattr(subject.config.stage, "balanced", False):
            raise  # the loss weighs labels by how often they came up
        return None


def _check(subject: Subject, chosen: Scored, examples: Mixture) -> None:
    if subject.labels is not None and not is_regression(subject.config.stage):
        try:
            check_rows(subject.labels, examples)
        except UserError as error:
            known = ", ".join(subject.labels.names[:20])
            fix = f"the model knows {known}: mend the row, or name another column: data.columns.label=COLUMN"
            raise UserError(error.what, where=error.where, fix=fix) from None
    if subject.labels is None and chosen.config.evaluation.choices:
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
