"""Plain text: a row is a line, a paragraph or the whole document, in the column `text`."""

from __future__ import annotations

from collections.abc import Iterator

from tunecli.config.data import SampleBy
from tunecli.data.examples import Unusable
from tunecli.data.readers import opened
from tunecli.data.readers.opened import DataFile, decode, lines, open_text
from tunecli.data.rows import BadRow, Row

Piece = tuple[int, bytes | None]
"""Number of the first line, and the bytes; None if they are too many."""


def read_text(file: DataFile) -> Iterator[Row | BadRow]:
    for number, raw in _pieces(file):
        if raw is None:
            fix = "data.sample_by=line makes smaller rows" if file.sample_by is not SampleBy.line else "break it up"
            yield file.too_long(number, fix)
            continue
        try:
            text = decode(raw).strip("\r\n")
        except Unusable as error:
            yield file.bad(number, error)
            continue
        if text and not text.isspace():
            yield Row(file.name, number, {"text": text.replace("\r\n", "\n")})


def _pieces(file: DataFile) -> Iterator[Piece]:
    with open_text(file) as stream:
        if file.sample_by is SampleBy.line:
            yield from lines(stream)
        elif file.sample_by is SampleBy.paragraph:
            yield from _paragraphs(lines(stream))
        else:
            raw = stream.read(opened.MAX_ROW_BYTES + 1)
            yield 1, raw if len(raw) <= opened.MAX_ROW_BYTES else None


def _paragraphs(lines: Iterator[Piece]) -> Iterator[Piece]:
    """Lines between blank lines, together."""
    first, size = 0, 0
    parts: list[bytes] = []
    for number, line in lines:
        if line is not None and line.isspace():
            if size:
                yield first, _joined(parts, size)
            parts, size = [], 0
            continue
        first = first if size else number
        size += opened.MAX_ROW_BYTES + 1 if line is None else len(line)
        if size <= opened.MAX_ROW_BYTES and line is not None:
            parts.append(line)
    if size:
        yield first, _joined(parts, size)


def _joined(parts: list[bytes], size: int) -> bytes | None:
    return b"".join(parts) if size <= opened.MAX_ROW_BYTES else None
