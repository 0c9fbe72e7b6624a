"""Tokenised data of one source: made once, kept in an Arrow file in the cache, memory-mapped when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunecli.config.data import OnBadRow, SampleBy, SourceConfig
from tunecli.config.data_checks import formats_for
from tunecli.config.errors import UserError
from tunecli.config.paths import cache_dir
from tunecli.config.stage import Rows, Task
from tunecli.data.encode import LISTED, Chunk, RowEncoder, encode, raise_bad_row
from tunecli.data.encoded import Encoded
from tunecli.data.formats import Format, choose_format
from tunecli.data.rows import BadRow, Row
from tunecli.data.source import file_names, fingerprint, read_rows
from tunecli.data.templates import TEMPLATE_DATE
from tunecli.data.tokens import Encoding

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

CACHE_VERSION = 5
"""To be raised with every change of formats, templates or tokenisation that changes tokens."""
TASK = "task"
"""Column of the name of a row's task."""
LOOKED_AT = 100
"""Rows whose columns tell the format."""
STALE_SECONDS = 24 * 3600
"""Age at which an unfinished folder in the cache belongs to a process that was killed."""


class TokenizedDataset:
    """Examples in the order of their rows. Open as many at once as you like: the file is never written again."""

    def __init__(self, folder: Path, names: list[str], format: Format) -> None:
        """`names`: what the files of the source are called today; the cache knows files by their content."""
        import pyarrow as pa

        self.format = format
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        """rows, split_rows, fingerprint, names, files, found"""
        today = dict(zip(self.summary["names"], names, strict=True))
        self._files = [today[name] for name in self.summary["files"]]
        with (folder / "left_out.jsonl").open(encoding="utf-8") as lines:
            entries = [json.loads(line) for line in lines]
        self.left_out = [entry | {"source": today[entry["source"]]} for entry in entries]
        """source, row, why (bad | overlong), what, fix"""
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow")))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    @cached_property
    def lengths(self) -> np.ndarray:
        """[examples] int64: tokens of each"""
        return self._column("length")

    @cached_property
    def trained_counts(self) -> np.ndarray:
        """[examples] int64: trained tokens of each"""
        return self._column("trained_count")

    @cached_property
    def rows(self) -> np.ndarray:
        """[examples] int64: row in its file"""
        return self._column("row")

    @cached_property
    def files(self) -> np.ndarray:
        """[examples] int32: which file of the source"""
        return self._column("file")

    @cached_property
    def contents(self) -> np.ndarray:
        """[examples] int64: equal for rows of equal content"""
        return self._column("content")

    @cached_property
    def truncated(self) -> np.ndarray:
        """[examples] bool"""
        return self._column("truncated")

    @cached_property
    def adapters(self) -> np.ndarray:
        """[examples] int32: which adapter each is for; -1: all of them"""
        return self._column("adapter")

    @property
    def num_files(self) -> int:
        return len(self._files)

    @cached_property
    def label_counts(self) -> Counter[str]:
        """How often each label is the label of an example or of a word."""
        import pyarrow.compute as pc

        counts: Counter[str] = Counter()
        for batch in self._batches:
            for entry in pc.value_counts(batch.column("labels").flatten()).to_pylist():
                counts[entry["values"]] += entry["counts"]
        return counts

    def _column(self, name: str) -> np.ndarray:
        columns = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate(columns) if columns else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Encoded:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        home = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, i = self._batches[home], index - int(self._starts[home])
        return Encoded.of(
            batch.column("input_ids")[i].values.to_numpy(),
            batch.column("spans")[i].values.to_numpy(),
            tuple(batch.column("labels")[i].as_py()),
            tuple(batch.column("parts")[i].as_py()),
            tuple(batch.column("numbers")[i].as_py()),
            batch.column("columns")[i].as_py(),
        )

    def origin(self, index: int) -> str:
        """File and row of an example, as in "train.jsonl row 17"."""
        return f"{self._files[self.files[index]]} row {self.rows[index]}"


def tokenized(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    *,
    sample_by: SampleBy,
    on_bad_row: OnBadRow,
    num_workers: int | None,
    show_progress: bool,
) -> TokenizedDataset:
    """The tokens of `source`, from the cache or made now. Safe in several processes at once.

    Raises:
        UserError: the source cannot be read, or (with `on_bad_row: error`) a row of it cannot be used.
    """
    format = format_of(source, sample_by, encoding.reads)
    content, names = fingerprint(source, sample_by), file_names(source, sample_by)
    folder = cache_dir() / "tokens" / _key(source, format, content, tokenizer, encoding)
    if not folder.exists():
        encoder = RowEncoder(format, tokenizer, encoding)
        chunks = encode(rows_of(source, sample_by), encoder, num_workers=num_workers)
        shown = _with_progress(chunks, source.path, show_progress)
        _write(folder, shown, on_bad_row, {"fingerprint": content, "names": names})
    dataset = TokenizedDataset(folder, names, format)
    if on_bad_row is OnBadRow.error:
        raise_bad_row(dataset.left_out)
    return dataset


def rows_of(source: SourceConfig, sample_by: SampleBy, *, streaming: bool = False) -> Iterator[Row | BadRow]:
    """The rows of a source; where its task has a name, with that in the column `task`, if they have none."""
    for row in read_rows(source, sample_by, streaming=streaming):
        if source.task is not None and isinstance(row, Row) and TASK not in row.values:
            row.values[TASK] = source.task
        yield row


def format_of(source: SourceConfig, sample_by: SampleBy, task: Task | Rows, *, streaming: bool = False) -> Format:
    """The format of a source, told from the columns of its first rows where it is `auto`."""
    seen: dict[str, Any] = {}
    bad: list[BadRow] = []
    for row in islice(read_rows(source, sample_by, streaming=streaming), LOOKED_AT):
        if isinstance(row, Row):
            seen |= {name: value for name, value in row.values.items() if seen.get(name) is None}
        else:
            bad.append(row)
    if seen or source.format != "auto":
        return choose_format(source.format, source.columns, seen, formats_for(task))
    if bad:
        raise UserError(bad[0].what, where=bad[0].where, fix=bad[0].fix)
    raise UserError("holds no rows", where=source.path, fix="check the file, and data.max_samples")


def _key(
    source: SourceConfig,
    format: Format,
    content: str,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
) -> str:
    """A hash of everything that the tokens depend on."""
    import tokenizers
    import transformers

    parts = {
        "cache": CACHE_VERSION,
        "libraries": [transformers.__version__, tokenizers.__version__],
        "content": content,
        "format": format.fingerprint,
        "max_samples": source.max_samples,
        "task": source.task if encoding.adapter_column == TASK else None,
        "encoding": encoding.plain,
        "tokenizer": _tokenizer_hash(tokenizer),
        "chat_template": tokenizer.chat_template,
        "template_date": TEMPLATE_DATE.isoformat(),
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.blake2b(repr(sorted(tokenizer.special_tokens_map.items())).encode(), digest_size=16)
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _write(folder: Path, chunks: Iterator[Chunk], on_bad_row: OnBadRow, facts: dict[str, Any]) -> None:
    """Write beside and rename: `folder` exists only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        summary = _write_chunks(partial, chunks, on_bad_row)
        (partial / "summary.json").write_text(json.dumps(summary | facts))
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Folders that a killed process left, old enough that none can still be writing them."""
    for partial in folder.glob(".partial-*"):
        try:
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)
        except FileNotFoundError:
            continue


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        # Another process was faster; its tokens are the same.


def _write_chunks(folder: Path, chunks: Iterator[Chunk], on_bad_row: OnBadRow) -> dict[str, Any]:
    """Write tokens.arrow and left_out.jsonl, and return what is to be summarised."""
    import pyarrow as pa

    schema = _schema()
    files: dict[str, int] = {}
    found: dict[str, tuple[int, list[str]]] = {}
    rows = split_rows = 0
    with (
        (folder / "left_out.jsonl").open("w", encoding="utf-8") as left_out,
        (folder / "tokens.arrow").open("wb") as tokens,
    ):
        with pa.ipc.new_file(tokens, schema) as writer:
            for chunk in chunks:
                if on_bad_row is OnBadRow.error:
                    raise_bad_row(chunk.left_out)
                left_out.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in chunk.left_out)
                for name in chunk.names:
                    files.setdefault(name, len(files))
                writer.write_batch(_record_batch(chunk, files, schema))
                rows += chunk.num_rows
                split_rows += chunk.split_rows
                _add_findings(found, chunk.found)
        tokens.flush()
        os.fsync(tokens.fileno())
    return {"rows": rows, "split_rows": split_rows, "files": list(files), "found": found}


def _add_findings(found: dict[str, tuple[int, list[str]]], more: dict[str, tuple[int, list[str]]]) -> None:
    for kind, (count, places) in more.items():
        before, known = found.get(kind, (0, []))
        found[kind] = (before + count, [*known, *places][:LISTED])


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "spans": pa.list_(pa.int32()),
            "length": pa.int64(),
            "trained_count": pa.int64(),
            "labels": pa.list_(pa.string()),
            "parts": pa.list_(pa.int32()),
            "numbers": pa.list_(pa.float64()),
            "columns": pa.string(),
            "row": pa.int64(),
            "file": pa.int32(),
            "content": pa.int64(),
            "truncated": pa.bool_(),
            "adapter": pa.int32(),
        }
    )


def _record_batch(chunk: Chunk, files: dict[str, int], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    def lists(values: np.ndarray, counts: np.ndarray) -> pa.ListArray:
        offsets = np.cumsum([0, *counts]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))

    numbers = np.array([files[name] for name in chunk.names], np.int32)
    columns = [
        lists(chunk.ids, chunk.lengths),
        lists(chunk.spans, 2 * chunk.span_counts),
        pa.array(chunk.lengths),
        pa.array(chunk.trained_counts),
        pa.array(chunk.labels, pa.list_(pa.string())),
        pa.array(chunk.parts, pa.list_(pa.int32())),
        pa.array(chunk.numbers, pa.list_(pa.float64())),
        pa.array(chunk.columns, pa.string()),
        pa.array(chunk.rows),
        pa.array(numbers[chunk.files]),
        pa.array(chunk.contents),
        pa.array(chunk.truncated),
        pa.array(chunk.adapters),
    ]
    return pa.record_batch(columns, schema=schema)


def _with_progress(chunks: Iterator[Chunk], path: str, show_progress: bool) -> Iterator[Chunk]:
    """The same chunks, with a line that counts the rows on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = not (show_progress and console.is_terminal)
    rows, started = 0, time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(f"tokenizing {path}")
        for chunk in chunks:
            rows += chunk.num_rows
            rate = rows / max(time.monotonic() - started, 1e-9)
            progress.update(task, description=f"tokenizing {path}: {rows:,} rows, {rate:,.0f} rows/s")
            yield chunk
