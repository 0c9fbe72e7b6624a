"""JSON: one object per line, or a list of objects that is read element by element."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from tunecli.config.errors import UserError
from tunecli.data.examples import Unusable
from tunecli.data.readers import opened
from tunecli.data.readers.opened import DataFile, decode, lines, open_text
from tunecli.data.rows import BadRow, Row

BLOCK_BYTES = 1 << 20
MARGIN = 16
"""Characters: longer than any piece of JSON that is wrong only because the text ends within it."""

DECODER = json.JSONDecoder()
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
BLANK = re.compile(r"[ \t\r\n]*")
QUOTING = 'write JSON: double quotes, no comma after the last item, "\\n" for a line break inside text'


def read_lines(file: DataFile) -> Iterator[Row | BadRow]:
    with open_text(file) as stream:
        for number, line in lines(stream):
            if line is None:
                yield file.too_long(number, "write one object per line, or break the row up")
            elif not line.isspace():
                yield _row(file, number, line)


def read_json(file: DataFile) -> Iterator[Row | BadRow]:
    """A list of objects, or one object per line as many .json files have it."""
    with open_text(file) as stream:
        start = stream.readline(opened.MAX_ROW_BYTES)
        while start and start.isspace():
            start = stream.readline(opened.MAX_ROW_BYTES)
    if start.lstrip().startswith(b"["):
        yield from _read_list(file)
    elif _is_object(start):
        yield from read_lines(file)
    else:
        raise UserError(
            "holds neither a list of objects nor one object per line" if start else "is empty",
            where=file.name,
            fix="write [{...}, {...}], or one object per line",
        )


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(_parse(decode(line)), dict)
    except Unusable:
        return False


def _row(file: DataFile, number: int, line: bytes) -> Row | BadRow:
    try:
        text = decode(line)
        return Row(file.name, number, _object(_parse(text), text))
    except Unusable as error:
        return file.bad(number, error)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Unusable(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}", _fix(error)) from None
    except (RecursionError, ValueError) as error:
        raise _unparsable(error) from None


def _fix(error: json.JSONDecodeError) -> str:
    if error.doc.strip() in ("[", "{"):
        return "each line must be one whole object; if the file is one list, name it .json"
    return QUOTING


def _unparsable(error: Exception) -> Unusable:
    if isinstance(error, RecursionError):
        return Unusable("nested too deeply", "flatten it; Python reads some hundred levels")
    return Unusable(f"not readable: {error}", "write very long numbers as text")


def _object(value: Any, text: str) -> dict[str, Any]:
    """`value`, parsed from `text`, if it is an object of whole characters."""
    if not isinstance(value, dict):
        raise Unusable(f"is {_kind(value)}, not an object", 'each row must be {"column": value, ...}')
    # The search goes first: most rows have no such escape, and writing a row costs as much as parsing it.
    if "\\u" in text and SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            what = "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            raise Unusable(what, "write the character itself, or both halves") from None
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_list(file: DataFile) -> Iterator[Row | BadRow]:
    with open_text(file) as stream:
        window = _Window(stream)
        window.take("[")
        number = 1
        if window.take("]"):
            return
        while True:
            try:
                value, text = window.element()
            except Unusable as error:
                yield BadRow(file.name, number, f"{error.what}; the rest of the file was not read", error.fix)
                return
            try:
                if not text.isascii():
                    decode(text.encode(errors="surrogateescape"))
                yield Row(file.name, number, _object(value, text))
            except Unusable as error:
                yield file.bad(number, error)
            number += 1
            if window.take("]"):
                break
            window.take(",")
        if rest := window.next_character():
            what = f"{rest!r} follows the end of the list; the rest of the file was not read"
            yield BadRow(file.name, number, what, "keep one list, [{...}, {...}], in the file")


def _after_blanks(text: str, position: int) -> int:
    match = BLANK.match(text, position)
    assert match is not None
    return match.end()


class _Window:
    """The part of a JSON text that is in memory. Bytes that are not UTF-8 stand in it as lone surrogates, so that
    they spoil the element that holds them and no other."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text = ""
        self.position = 0
        self.lines = 0
        """line breaks in what has been dropped"""
        self.column = 0
        """characters dropped since the last of them"""
        self.ended = False

    def next_character(self) -> str:
        """The next one that is not blank, not taken; "" at the end."""
        while True:
            self.position = _after_blanks(self.text, self.position)
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self._grow()

    def take(self, character: str) -> bool:
        found = self.next_character() == character
        self.position += found
        return found

    def element(self) -> tuple[Any, str]:
        """The next element and its text; behind it a comma or the closing bracket follows."""
        self.next_character()
        while True:
            # The message, not the exception: that would keep the text alive until the next garbage collection.
            try:
                value, end = DECODER.raw_decode(self.text, self.position)
                end = _after_blanks(self.text, end)
                if self.text[end : end + 1] in (",", "]") and end < len(self.text):
                    text, self.position = self.text[self.position : end], end
                    return value, text
                message, at = "Expecting ',' delimiter", end
            except json.JSONDecodeError as error:
                message, at = error.msg, error.pos
            except (RecursionError, ValueError) as error:
                raise _unparsable(error) from None
            open_string = message.startswith("Unterminated string")
            if self.ended or not (open_string or at >= len(self.text) - MARGIN):
                raise self._broken(message, at, cut=open_string or at >= len(self.text.rstrip()))
            if len(self.text) - self.position > opened.MAX_ROW_BYTES:
                what = f"longer than {opened.MAX_ROW_BYTES / 2**20:g} MiB"
                raise Unusable(what, "look for a quote that is not closed, or break the row up")
            self._grow()

    def _broken(self, message: str, at: int, *, cut: bool) -> Unusable:
        if cut:
            fix = "it was cut off, so copy or download it again; or a quote or bracket is not closed"
            return Unusable("the file ends within the list", fix)
        line, column = self._place(at)
        return Unusable(f"not JSON: {message.removesuffix(' at')} at line {line} column {column}", QUOTING)

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, in the whole file."""
        lines, last = self.text.count("\n", 0, at), self.text.rfind("\n", 0, at)
        return self.lines + lines + 1, at - last + (0 if lines else self.column)

    def _grow(self) -> None:
        """Drops what has been taken and reads as much again as is left, at least a block: no text is parsed more
        often than about twice."""
        line, column = self._place(self.position)
        self.lines, self.column = line - 1, column - 1
        left = self.text[self.position :]
        block = self.stream.read(max(BLOCK_BYTES, len(left)))
        self.ended = not block
        self.text, self.position = left + self.decoder.decode(block, final=self.ended), 0
