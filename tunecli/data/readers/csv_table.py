"""Tables as text: .csv (commas; semicolons or tabs if the header has only these) and .tsv. A quoted field may hold
line breaks; rows are numbered as a spreadsheet shows them, the header being row 1."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tunecli.config.errors import UserError
from tunecli.data.examples import Unusable
from tunecli.data.readers import opened
from tunecli.data.readers.opened import DataFile, decode, open_text, skip_line
from tunecli.data.rows import BadRow, Row

MARKS = {",": "comma", ";": "semicolon", "\t": "tab"}
QUOTES = 'look for a quote (") that is not closed, or not doubled ("") inside a quoted field'


def read_csv(file: DataFile) -> Iterator[Row | BadRow]:
    with open_text(file) as stream:
        first = stream.readline(opened.MAX_ROW_BYTES)
        delimiter = next((mark for mark in MARKS if mark.encode() in first), ",")
        yield from _rows(file, stream, first, delimiter)


def read_tsv(file: DataFile) -> Iterator[Row | BadRow]:
    with open_text(file) as stream:
        yield from _rows(file, stream, stream.readline(opened.MAX_ROW_BYTES), "\t")


def _rows(file: DataFile, stream: Any, first: bytes, delimiter: str) -> Iterator[Row | BadRow]:
    # For the whole process: the csv module knows no other limit. `_Lines` bounds what a row takes.
    csv.field_size_limit(2 * opened.MAX_ROW_BYTES)
    lines = _Lines(stream)
    try:
        reader = csv.reader(chain([decode(first)], lines), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        lines.raise_problem()
    except (csv.Error, Unusable) as error:
        what = f"the header cannot be read: {_problem(error).what}"
        raise UserError(what, where=file.name, fix=_problem(error).fix) from None
    _check_header(file, names)
    number = 1
    while True:
        number += 1
        lines.start_row()
        try:
            fields = next(reader)
            lines.raise_problem()
        except StopIteration:
            return
        except (csv.Error, Unusable) as error:
            yield file.bad(number, _problem(error))
            continue
        if len(fields) == len(names):
            values = dict(zip(names, fields, strict=True))
            values.pop("", None)
            yield Row(file.name, number, values)
        elif fields:
            what = f"has {len(fields)} fields, and the header {len(names)}"
            fix = f"a {MARKS[delimiter]} stands between fields; put a field that holds one in quotes"
            yield BadRow(file.name, number, what, fix)


class _Lines:
    """Lines for csv.reader. Ends a row that grows too long, and remembers what else is wrong with a row."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.start_row()

    def start_row(self) -> None:
        self.size = 0
        self.problem: Unusable | None = None

    def raise_problem(self) -> None:
        if self.problem is not None:
            raise self.problem

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(opened.MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.size += len(line)
        if self.size > opened.MAX_ROW_BYTES:
            skip_line(self.stream, line)
            raise Unusable(f"longer than {opened.MAX_ROW_BYTES / 2**20:g} MiB", QUOTES)
        try:
            return decode(line)
        except Unusable as error:
            # The row goes on, as its quotes say, so that the next one is found.
            self.problem = error
            return line.decode(errors="replace")


def _problem(error: csv.Error | Unusable) -> Unusable:
    if isinstance(error, Unusable):
        return error
    if "end of data" in str(error):
        return Unusable('a quote (") is open to the end of the file: the rows from here on are one', QUOTES)
    if "new-line character" in str(error):
        return Unusable("has line breaks of old Macs (\\r alone)", "save it anew, as `CSV UTF-8`")
    return Unusable(f"not CSV: {error}", QUOTES)


def _check_header(file: DataFile, names: list[str]) -> None:
    if not any(names):
        raise UserError("has no header", where=file.name, fix="name the columns in the first line")
    double = {name for name in names if name and names.count(name) > 1}
    if double:
        raise UserError(f"has two columns named {min(double)!r}", where=file.name, fix="rename one in the header")
