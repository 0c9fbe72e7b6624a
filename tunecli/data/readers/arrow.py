"""Arrow tables on disk: .parquet, and .arrow / .feather in the file or the stream layout; a batch at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunecli.config.data_files import kind_of
from tunecli.config.errors import UserError
from tunecli.data.readers.opened import DataFile, open_bytes
from tunecli.data.rows import BadRow, Row

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 1000
BUFFER_BYTES = 1 << 20
"""What parquet reads of a column at once, not the whole column of a row group."""


def read_parquet(file: DataFile) -> Iterator[Row | BadRow]:
    import pyarrow
    import pyarrow.parquet

    with _seekable(file) as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise _not_a(file, ".parquet", error) from None
        yield from _rows(file, _parquet_batches(table))


def read_arrow(file: DataFile) -> Iterator[Row | BadRow]:
    import pyarrow

    with _seekable(file) as stream:
        start = stream.read(6)
        stream.seek(0)
        if start.startswith(b"FEA1"):
            fix = "read it with pandas, and write it as .parquet"
            raise UserError("is of version 1 of the Feather format", where=file.name, fix=fix)
        try:
            batches = _file_batches(stream) if start == b"ARROW1" else iter(pyarrow.ipc.open_stream(stream))
        except (pyarrow.ArrowException, OSError) as error:
            raise _not_a(file, ".arrow", error) from None
        yield from _rows(file, batches)


def _parquet_batches(table: ParquetFile) -> Iterator[RecordBatch]:
    """One row group after the other: a batch over two of them would be lost with the second."""
    for group in range(table.num_row_groups):
        yield from table.iter_batches(BATCH_ROWS, row_groups=[group])


def _file_batches(stream: Any) -> Iterator[RecordBatch]:
    import pyarrow

    table = pyarrow.ipc.open_file(stream)
    return (table.get_batch(index) for index in range(table.num_record_batches))


def _rows(file: DataFile, batches: Iterator[RecordBatch]) -> Iterator[Row | BadRow]:
    """Raises OSError where the file is damaged."""
    import pyarrow

    number = 0
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise OSError(str(error)) from None
        if batch is None:
            return
        _refuse_equal_names(file, batch.schema.names)
        for start in range(0, len(batch), BATCH_ROWS):
            for values in _values(batch.slice(start, BATCH_ROWS)):
                number += 1
                yield _row(file, number, values)


def _values(batch: RecordBatch) -> list[dict[str, Any] | ValueError]:
    """Each row as Python values, or why it has none."""
    try:
        return batch.to_pylist()
    except ValueError as error:  # such as bytes that are not UTF-8: only the row that has them is bad
        if len(batch) == 1:
            return [error]
        return [value for index in range(len(batch)) for value in _values(batch.slice(index, 1))]


def _row(file: DataFile, number: int, values: dict[str, Any] | ValueError) -> Row | BadRow:
    if not isinstance(values, ValueError):
        return Row(file.name, number, values)
    if isinstance(values, UnicodeDecodeError):
        return BadRow(file.name, number, f"not UTF-8 ({values.reason})", "write the column's text as UTF-8")
    return BadRow(file.name, number, f"holds what Python cannot ({values})", "change it, or leave the row out")


def _refuse_equal_names(file: DataFile, names: list[str]) -> None:
    double = {name for name in names if names.count(name) > 1}
    if double:
        fix = "rename one, and write the file again"
        raise UserError(f"has two columns named {min(double)!r}", where=file.name, fix=fix)


@contextmanager
def _seekable(file: DataFile) -> Iterator[Any]:
    """A compressed file is unpacked to the disk first, as these formats are not read from start to end."""
    with open_bytes(file) as stream:
        if kind_of(file.path.name)[1] == "":
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(stream, unpacked, 1 << 20)
            unpacked.seek(0)
            yield unpacked


def _not_a(file: DataFile, suffix: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(
        f"is damaged, or no {suffix} file ({reason})",
        where=file.name,
        fix="copy or download the file again, or give it the name of what it is",
    )
