"""CoNLL files: a word in each line with its tag in the last column, and a blank line after each text.

A row has the columns `tokens` and `tags`. Lines that begin with `-DOCSTART-`, and comments such as `# sent_id = 1` or
`# id 1`, are no words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from tunecli.data.examples import Unusable
from tunecli.data.readers.opened import DataFile, decode, lines, open_text
from tunecli.data.rows import BadRow, Row

COMMENT = re.compile(r"#\s+(\S+ =|id )")
BLANKS = re.compile(r"[ \t\r\n]+")
"""Between columns. A word may hold other white space, as tweets do."""


def read_conll(file: DataFile) -> Iterator[Row | BadRow]:
    """The number of a row is that of its first line."""
    words: list[list[str]] = []
    first, wrong = 0, None
    for number, raw in chain(_lines(file), [(0, "")]):
        if raw is None or isinstance(raw, Unusable):
            wrong = wrong or (file.too_long(number, "break it up") if raw is None else file.bad(number, raw))
            continue
        cells = [cell for cell in BLANKS.split(raw) if cell]
        if COMMENT.match(raw):
            continue
        if not cells or cells[0] == "-DOCSTART-":
            if wrong or words:
                yield wrong or _row(file, first, words)
            words, wrong = [], None
        elif len(cells) > 1:
            first = first if words else number
            words.append(cells)
        else:
            error = Unusable(f"{cells[0]!r} has no tag", "write the tag behind the word, with a blank between them")
            wrong = wrong or file.bad(number, error)


def _lines(file: DataFile) -> Iterator[tuple[int, str | Unusable | None]]:
    """Number and text of each line; in place of the text what is wrong with it, None if it is too long."""
    with open_text(file) as stream:
        for number, raw in lines(stream):
            try:
                yield number, None if raw is None else decode(raw)
            except Unusable as error:
                yield number, error


def _row(file: DataFile, number: int, words: list[list[str]]) -> Row:
    return Row(file.name, number, {"tokens": [cells[0] for cells in words], "tags": [cells[-1] for cells in words]})
