"""Tokenised data: made once, kept in an Arrow file in the cache, memory-mapped when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunecli.config.data import DataConfig
from tunecli.config.errors import UserError
from tunecli.config.paths import cache_dir
from tunecli.data.formats import to_example
from tunecli.data.source import fingerprint, read_rows
from tunecli.data.templates import TEMPLATE_DATE, apply_chat_template_choice
from tunecli.data.tokenize import Tokens, tokenize

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CACHE_VERSION = 1
"""To be raised with every change of formats, templates or tokenisation that changes tokens."""
BATCH_ROWS = 1024
"""Examples per Arrow record batch; example i is in batch i // BATCH_ROWS."""


class TokenizedDataset:
    """Examples in the order of their rows. Open as many at once as you like: the file is never written again."""

    def __init__(self, folder: Path, source: str) -> None:
        import pyarrow as pa

        self.source = source
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        """rows, examples, truncated (examples), split_rows, tokens, trained_tokens, fingerprint"""
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow")))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.lengths = self._column("length")
        """[examples] int64: tokens of each"""
        self.trained_counts = self._column("trained_count")
        """[examples] int64: trained tokens of each"""
        self._rows = self._column("row")

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([batch.column(name).to_numpy() for batch in self._batches])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Token ids [n] int64 and whether each is trained [n] bool."""
        import torch

        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        batch, i = self._batches[index // BATCH_ROWS], index % BATCH_ROWS
        ids = batch.column("input_ids")[i].values.to_numpy()
        trained = batch.column("trained")[i].values.to_numpy(zero_copy_only=False)
        return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(trained.astype(np.bool_))

    def origin(self, index: int) -> str:
        """File and row of an example, as in "train.jsonl row 17"."""
        return f"{self.source} row {self._rows[index]}"

    @property
    def notes(self) -> list[str]:
        """What a user should know about these data, one line each."""
        notes = []
        if truncated := self.summary["truncated"]:
            notes.append(f"{self.source}: {truncated} of {len(self)} examples lost their end to data.max_length")
        if split := self.summary["split_rows"]:
            notes.append(
                f"{self.source}: {split} of {self.summary['rows']} rows became one example per answer, because the "
                "chat template renders earlier turns differently when later ones follow"
            )
        return notes


def prepare(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    path: str,
    train_on_prompt: bool,
    show_progress: bool,
) -> TokenizedDataset:
    """The tokens of `path` (`data.path` or `data.validation`), from the cache or made now.

    Applies `data.chat_template` to the tokenizer, so that what is saved with the model is what it was trained with.
    Safe in several processes at once. Raises UserError with file and row for a row that cannot be used.
    """
    apply_chat_template_choice(tokenizer, data.chat_template)
    content = fingerprint(data, path)
    folder = cache_dir() / "tokens" / _key(data, tokenizer, content, train_on_prompt)
    if not folder.exists():
        _write(folder, data, tokenizer, path, content, train_on_prompt, show_progress)
    return TokenizedDataset(folder, path)


def _key(data: DataConfig, tokenizer: PreTrainedTokenizerBase, content: str, train_on_prompt: bool) -> str:
    """A hash of everything that the tokens depend on."""
    import tokenizers
    import transformers

    parts = {
        "cache": CACHE_VERSION,
        "libraries": [transformers.__version__, tokenizers.__version__],
        "content": content,
        "format": data.format,
        "columns": sorted(data.columns.items()),
        "max_length": data.max_length,
        "max_samples": data.max_samples,
        "train_on_prompt": train_on_prompt,
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


@dataclass(slots=True)
class _Counts:
    rows: int = 0
    split_rows: int = 0


def _write(
    folder: Path,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    content: str,
    train_on_prompt: bool,
    show_progress: bool,
) -> None:
    """Write beside and rename: `folder` exists only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        counts = _Counts()
        examples = _tokenized_rows(data, tokenizer, path, train_on_prompt, counts)
        summary = _write_arrow(partial / "tokens.arrow", _with_progress(examples, path, counts, show_progress))
        if not summary["examples"]:
            raise UserError("holds no rows", where=path, fix="check the file, and data.max_samples")
        summary |= {"rows": counts.rows, "split_rows": counts.split_rows, "fingerprint": content}
        (partial / "summary.json").write_text(json.dumps(summary))
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        # Another process was faster; its tokens are the same.


def _tokenized_rows(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, path: str, train_on_prompt: bool, counts: _Counts
) -> Iterator[tuple[int, Tokens]]:
    """Pairs of row number and tokens; several for a row that was split."""
    for row in read_rows(data, path):
        example = to_example(row, data.format, data.columns)
        items = tokenize(
            example, tokenizer, max_length=data.max_length, train_on_prompt=train_on_prompt, where=row.where
        )
        counts.rows += 1
        counts.split_rows += len(items) > 1
        for tokens in items:
            yield row.number, tokens


def _with_progress(
    examples: Iterator[tuple[int, Tokens]], path: str, counts: _Counts, show_progress: bool
) -> Iterator[tuple[int, Tokens]]:
    """The same examples, with a line that counts the rows on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = not (show_progress and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(f"tokenizing {path}")
        for item in examples:
            if counts.rows % 100 == 0:
                progress.update(task, description=f"tokenizing {path}: {counts.rows:,} rows")
            yield item


def _write_arrow(file: Path, examples: Iterator[tuple[int, Tokens]]) -> dict[str, int]:
    import pyarrow as pa

    schema = pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "trained": pa.list_(pa.bool_()),
            "length": pa.int64(),
            "trained_count": pa.int64(),
            "row": pa.int64(),
        }
    )
    summary = {"examples": 0, "tokens": 0, "trained_tokens": 0, "truncated": 0}
    with file.open("wb") as stream:
        with pa.ipc.new_file(stream, schema) as writer:
            for chunk in _chunks(examples):
                batch = _record_batch(chunk, schema)
                writer.write_batch(batch)
                summary["examples"] += len(chunk)
                summary["tokens"] += int(batch.column("length").to_numpy().sum())
                summary["trained_tokens"] += int(batch.column("trained_count").to_numpy().sum())
                summary["truncated"] += sum(tokens.truncated for _, tokens in chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return summary


def _chunks(examples: Iterator[tuple[int, Tokens]]) -> Iterator[list[tuple[int, Tokens]]]:
    chunk = []
    for item in examples:
        chunk.append(item)
        if len(chunk) == BATCH_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _record_batch(chunk: list[tuple[int, Tokens]], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = {
        "input_ids": [tokens.input_ids for _, tokens in chunk],
        "trained": [tokens.trained for _, tokens in chunk],
        "length": [len(tokens.input_ids) for _, tokens in chunk],
        "trained_count": [sum(tokens.trained) for _, tokens in chunk],
        "row": [number for number, _ in chunk],
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
