"""Opening a data file: compression, byte-order marks, lines of bounded length."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunecli.config.data import SampleBy
from tunecli.config.data_files import SUFFIXES, is_data_file, kind_of
from tunecli.config.errors import UserError
from tunecli.data.examples import Unusable
from tunecli.data.rows import BadRow

MAX_ROW_BYTES = 64 << 20
"""Longer rows are bad ones: mostly an unclosed quote, or a whole file without line breaks."""


@dataclass(frozen=True, slots=True)
class DataFile:
    path: Path
    name: str
    """as the user would type it, for messages"""
    sample_by: SampleBy

    @property
    def kind(self) -> str:
        """Key of READERS. Raises UserError for a name that does not tell."""
        kind, compression = kind_of(self.path.name)
        if compression == ".zip":
            with _open_zip(self) as archive:
                kind, _ = kind_of(_member(self, archive))
        if kind is None:
            what = f"a {self.path.suffix} file" if self.path.suffix else "a file without a suffix"
            fix = f"convert it to .jsonl (one object per line), or rename it: names end in {SUFFIXES}"
            raise UserError(f"cannot read {what}", where=self.name, fix=fix)
        return kind

    def bad(self, number: int, error: Unusable) -> BadRow:
        return BadRow(self.name, number, error.what, error.fix)

    def too_long(self, number: int, fix: str) -> BadRow:
        return BadRow(self.name, number, f"longer than {MAX_ROW_BYTES / 2**20:g} MiB", fix)


def open_bytes(file: DataFile) -> Any:
    """The decompressed bytes, a binary stream that has `peek`. Raises UserError if it cannot be opened."""
    _, compression = kind_of(file.path.name)
    with _explained(file):
        return OPENERS[compression](file)


def open_text(file: DataFile) -> Any:
    """As `open_bytes`, behind the byte-order mark. Raises UserError for UTF-16."""
    stream = open_bytes(file)
    start = stream.peek(4)[:4]
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        stream.close()
        raise UserError("is UTF-16, not UTF-8", where=file.name, fix="save it as UTF-8")
    if start.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    return stream


def lines(stream: Any) -> Iterator[tuple[int, bytes | None]]:
    r"""(number from 1, line with its \n) of each line; None in the place of one that is too long.

    Bytes, because a text file would also break lines at \r and at what str.splitlines breaks at.
    """
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) <= MAX_ROW_BYTES:
            yield number, line
        else:
            skip_line(stream, line)
            yield number, None


def skip_line(stream: Any, piece: bytes) -> None:
    """Reads on to the end of the line that `piece` is a part of."""
    while piece and not piece.endswith(b"\n"):
        piece = stream.readline(1 << 20)


def decode(raw: bytes) -> str:
    """Raises Unusable for what is no text."""
    if b"\0" in raw:
        fix = "the file was damaged when it was written, or is UTF-16: write it again, as UTF-8"
        raise Unusable("holds NUL bytes, which are no text", fix)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start})"
        raise Unusable(what, "save the file as UTF-8") from None


@contextmanager
def _explained(file: DataFile) -> Iterator[None]:
    """Turns what the system says on opening a file into a UserError."""
    try:
        yield
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise UserError(what, where=file.name, fix="check the path and permissions") from None


def _plain(file: DataFile) -> Any:
    return file.path.open("rb", buffering=1 << 18)


def _xz(file: DataFile) -> Any:
    return lzma.LZMAFile(file.path)


def _by_pyarrow(codec: str) -> Callable[[DataFile], Any]:
    def opener(file: DataFile) -> Any:
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file.path.open("rb"), codec), 1 << 16)

    return opener


def _zipped(file: DataFile) -> Any:
    with _open_zip(file) as archive:
        try:
            return archive.open(_member(file, archive))
        except RuntimeError as error:  # a password, or a compression that is not built in
            fix = "unpack it, and name the file that was in it"
            raise UserError(f"cannot be unpacked: {error}", where=file.name, fix=fix) from None


def _open_zip(file: DataFile) -> zipfile.ZipFile:
    with _explained(file):
        try:
            return zipfile.ZipFile(file.path)
        except zipfile.BadZipFile:
            fix = "copy or download the file again"
            raise UserError("is damaged, or no .zip file", where=file.name, fix=fix) from None


def _member(file: DataFile, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if is_data_file(name) and not _hidden(name)]
    if len(names) == 1 and kind_of(names[0])[1] == "":
        return names[0]
    what = f"holds {len(names)} data files ({', '.join(names[:5])})" if names else "holds no data file"
    raise UserError(
        f"{what}; one uncompressed file can be read from a .zip",
        where=file.name,
        fix="unpack it, and name the folder",
    )


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)


OPENERS: dict[str, Callable[[DataFile], Any]] = {
    "": _plain,
    ".gz": lambda file: gzip.GzipFile(file.path),
    ".bz2": lambda file: bz2.BZ2File(file.path),
    ".xz": _xz,
    ".zst": _by_pyarrow("zstd"),
    ".lz4": _by_pyarrow("lz4"),
    ".zip": _zipped,
}
