"""Rows that are to be judged: pairs, scored answers, or answers of which nothing is known yet."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from tunecli.config.data import DataConfig, OnBadRow, training_sources
from tunecli.config.data_checks import formats_for
from tunecli.config.errors import UserError
from tunecli.config.stage import Rows, Task
from tunecli.data.dataset import LOOKED_AT
from tunecli.data.examples import Example, Unusable
from tunecli.data.formats import Format, choose_format
from tunecli.data.rows import Row
from tunecli.data.source import read_rows

ANSWERS = (*formats_for(Rows.judged), *(name for name in formats_for(Task.causal_lm) if name != "columns"))
"""Formats whose rows hold an answer."""


@dataclass(frozen=True, slots=True)
class Found:
    """One row that could be read."""

    file: str
    row: int
    example: Example

    @property
    def place(self) -> dict[str, Any]:
        return {"file": self.file, "row": self.row}


def read(data: DataConfig, known: tuple[str, ...]) -> tuple[list[Found], int]:
    """The rows of all sources, in order, and how many were left out as `data.on_bad_row=skip` says.

    Args:
        known: formats that they may have; where two fit, the first kind of `Rows.judged` does.

    Raises:
        UserError: a source or a row cannot be read.
    """
    found: list[Found] = []
    left_out = 0
    for source in training_sources(data):
        format = _format(data, known, source)
        for row in read_rows(source, data.sample_by):
            try:
                if not isinstance(row, Row):
                    raise Unusable(row.what, row.fix)
                found.append(Found(row.source, row.number, format(row.values)))
            except Unusable as error:
                if data.on_bad_row is OnBadRow.error:
                    fix = f"{error.fix}; data.on_bad_row=skip leaves such rows out"
                    raise UserError(error.what, where=row.where, fix=fix) from None
                left_out += 1
    return found, left_out


def _format(data: DataConfig, known: tuple[str, ...], source: Any) -> Format:
    """Told from the columns of the first rows where it is `auto`."""
    first: dict[str, Any] = {}
    for row in islice(read_rows(source, data.sample_by), LOOKED_AT):
        if isinstance(row, Row):
            first |= {name: value for name, value in row.values.items() if first.get(name) is None}
    if not first:
        raise UserError("holds no rows that can be read", where=source.path, fix="check the file")
    preferred = tuple(name for name in known if name in formats_for(Rows.judged))
    try:
        return choose_format(source.format, source.columns, first, preferred or known)
    except UserError:
        if source.format != "auto" or not preferred or preferred == known:
            raise
        return choose_format(source.format, source.columns, first, known)
