"""One reader per kind of file: what it holds, row by row, in flat memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from zipfile import BadZipFile

from tunecli.config.errors import UserError
from tunecli.data.readers import arrow, conll, csv_table, json_rows, text
from tunecli.data.readers.opened import DataFile
from tunecli.data.rows import BadRow, Row

READERS: dict[str, Callable[[DataFile], Iterator[Row | BadRow]]] = {
    "json_lines": json_rows.read_lines,
    "json": json_rows.read_json,
    "csv": csv_table.read_csv,
    "tsv": csv_table.read_tsv,
    "parquet": arrow.read_parquet,
    "arrow": arrow.read_arrow,
    "text": text.read_text,
    "conll": conll.read_conll,
}

DAMAGED = (EOFError, OSError, zlib.error, LZMAError, BadZipFile)
"""What the decompressors and pyarrow raise where a file ends too early or makes no sense."""


def read_file(file: DataFile) -> Iterator[Row | BadRow]:
    """The rows of one file. A row that cannot be read comes as a BadRow, and reading goes on after it if it can.

    Raises UserError where nothing of the file can be read.
    """
    number = 0
    try:
        for row in READERS[file.kind](file):
            number = row.number
            yield row
    except DAMAGED as error:
        fix = "copy or download the file again, or write it anew"
        if number == 0:
            what = f"is damaged, or not what its name says ({_reason(error)})"
            raise UserError(what, where=file.name, fix=fix) from None
        what = f"the file is damaged from here on ({_reason(error)}); the rest of it was not read"
        yield BadRow(file.name, number + 1, what, fix)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
