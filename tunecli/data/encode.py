"""From rows to tokens, a chunk of rows at a time, in this process or spread over several.

A chunk's result depends on its rows only, so the examples and their order do not depend on the number of processes.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tunecli.config.errors import UserError
from tunecli.data.examples import Example, TooLong, Unusable
from tunecli.data.formats import Format
from tunecli.data.lint import findings
from tunecli.data.rows import BadRow, Row
from tunecli.data.tokenize import tokenize_many
from tunecli.data.tokens import EVERY, Encoding, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1024
SMALL = 8
"""Chunks that are encoded in this process before others are started: small data need none."""
LISTED = 5
"""Rows that are named for each kind of finding."""

Item = tuple[int, Tokens]
"""Which adapter an example is for, -1 for all of them; and the example."""

_encoder: RowEncoder | None = None
"""The encoder of a worker process."""


@dataclass(slots=True)
class Chunk:
    """Examples of some rows, end to end in flat arrays."""

    ids: np.ndarray
    """[tokens] int32"""
    spans: np.ndarray
    """[2 * spans] int32: start and end of each trained span, counted from the start of its example"""
    lengths: np.ndarray
    """[examples] int64: tokens of each"""
    span_counts: np.ndarray
    """[examples] int64: spans of each"""
    trained_counts: np.ndarray
    """[examples] int64: trained tokens of each; 1 where there are no spans"""
    labels: list[tuple[str, ...]]
    """of each example"""
    parts: list[tuple[int, ...]]
    """of each example: where the parts after the first begin"""
    numbers: list[tuple[float, ...]]
    columns: list[str]
    truncated: np.ndarray
    """[examples] bool"""
    contents: np.ndarray
    """[examples] int64: hash of the row that it comes from, as its format reads it"""
    rows: np.ndarray
    """[examples] int64"""
    files: np.ndarray
    """[examples] int32 index into `names`"""
    adapters: np.ndarray
    """[examples] int32: which adapter the row is for; -1: all of them"""
    names: list[str]
    """the files of this chunk"""
    num_rows: int
    """rows read, whether used or not"""
    split_rows: int
    """rows that became several examples"""
    left_out: list[dict[str, Any]]
    """source, row, why (bad | overlong), what, fix"""
    found: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """what is odd about rows that are used -> how many, and the first of them"""

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Everything that the tokens of a row depend on."""

    format: Format
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding

    def __call__(self, rows: list[Row | BadRow]) -> Chunk:
        bad: list[BadRow] = [row for row in rows if isinstance(row, BadRow)]
        converted: list[tuple[Row, Example]] = []
        for row in rows:
            if isinstance(row, Row):
                try:
                    converted.append((row, self.format(row.values)))
                except Unusable as error:
                    bad.append(BadRow(row.source, row.number, error.what, error.fix))
        results = self._tokenized(converted)
        used: list[tuple[Row, Example, list[Item]]] = []
        overlong: list[BadRow] = []
        for (row, example), result in zip(converted, results, strict=True):
            if isinstance(result, Unusable):
                home = overlong if isinstance(result, TooLong) else bad
                home.append(BadRow(row.source, row.number, result.what, result.fix))
            else:
                used.append((row, example, result))
        chunk = _flat(used)
        chunk.found = _findings(used, self.tokenizer.all_special_tokens)
        chunk.num_rows = len(rows)
        chunk.left_out = [
            {"source": row.source, "row": row.number, "why": why, "what": row.what, "fix": row.fix}
            for why, group in (("bad", bad), ("overlong", overlong))
            for row in sorted(group, key=lambda row: (row.source, row.number))
        ]
        return chunk

    def _tokenized(self, converted: list[tuple[Row, Example]]) -> list[list[Item] | Unusable]:
        """Of each row."""
        if not self.encoding.adapter_column:
            found = tokenize_many([example for _, example in converted], self.tokenizer, self.encoding)
            return [each if isinstance(each, Unusable) else [(-1, tokens) for tokens in each] for each in found]
        results: list[list[Item] | Unusable] = [[] for _ in converted]
        for number, name in enumerate(self.encoding.adapters):
            mine = [i for i, (row, _) in enumerate(converted) if self._is_for(row, name)]
            examples = [converted[i][1] for i in mine]
            found = tokenize_many(examples, self.tokenizer, self.encoding.for_adapter(name))
            for i, each in zip(mine, found, strict=True):
                known = results[i]
                if isinstance(each, Unusable) or isinstance(known, Unusable):
                    results[i] = each if isinstance(each, Unusable) else known
                else:
                    results[i] = [*known, *((number, tokens) for tokens in each)]
        return [
            result if result else self._unknown_adapter(row)
            for result, (row, _) in zip(results, converted, strict=True)
        ]

    def _is_for(self, row: Row, adapter: str) -> bool:
        column = self.encoding.adapter_column
        return column == EVERY or row.values.get(column) == adapter

    def _unknown_adapter(self, row: Row) -> Unusable:
        column = self.encoding.adapter_column
        known = ", ".join(self.encoding.adapters)
        if column not in row.values:
            fix = f"data.adapter_column names a column of the row, which has: {', '.join(row.values) or 'none'}"
            return Unusable(f"no column {column!r}", fix)
        return Unusable(
            f"column {column!r} holds {row.values[column]!r:.60}, which is no entry of peft", f"write one of: {known}"
        )


def encode(rows: Iterable[Row | BadRow], encoder: RowEncoder, *, num_workers: int | None) -> Iterator[Chunk]:
    """The chunks of all rows, in their order. `num_workers` None: one per core, once the data prove to be large."""
    source = iter(rows)
    chunks = iter(lambda: list(islice(source, CHUNK_ROWS)), [])
    alone = SMALL if num_workers is None else 0
    if (num_workers or cores()) < 2:
        yield from map(encoder, chunks)
        return
    yield from map(encoder, islice(chunks, alone))
    if (next_chunk := next(chunks, None)) is not None:
        yield from _in_parallel(encoder, next_chunk, chunks, num_workers or cores())


def raise_bad_row(left_out: Iterable[dict[str, Any]]) -> None:
    """For `on_bad_row: error`.

    Raises:
        UserError: the first bad row.
    """
    for entry in left_out:
        if entry["why"] == "bad":
            raise UserError(
                entry["what"],
                where=f"{entry['source']} row {entry['row']}",
                fix=f"{entry['fix']}; or leave such rows out: data.on_bad_row=skip",
            )


def content_hash(example: Example) -> int:
    """A signed 64-bit hash of what a format read from a row; equal rows have equal ones."""
    digest = hashlib.blake2b(repr(example).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_parallel(
    encoder: RowEncoder, first: list[Row | BadRow], others: Iterator[list[Row | BadRow]], num_workers: int
) -> Iterator[Chunk]:
    # Forked workers start at once and share the tokenizer; elsewhere than on Linux forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    waiting: deque[Future[Chunk]] = deque()
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(encoder,)) as pool:
        waiting.append(pool.submit(_encode_in_worker, first))
        for rows in others:
            waiting.append(pool.submit(_encode_in_worker, rows))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start_worker(encoder: RowEncoder) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Rows are many small objects without cycles; looking for cycles in them took a tenth of the time.
    gc.freeze()
    gc.set_threshold(100_000)
    _encoder = encoder


def _encode_in_worker(rows: list[Row | BadRow]) -> Chunk:
    assert _encoder is not None
    return _encoder(rows)


def _flat(used: list[tuple[Row, Example, list[Item]]]) -> Chunk:
    items = [(row, tokens) for row, _, group in used for _, tokens in group]
    adapters = [adapter for _, _, group in used for adapter, _ in group]
    hashes = {id(row): content_hash(example) for row, example, _ in used}
    names = list(dict.fromkeys(row.source for row, _, _ in used))
    number = {name: i for i, name in enumerate(names)}
    spans = [border for _, tokens in items for span in tokens.spans for border in span]
    return Chunk(
        ids=np.fromiter(chain.from_iterable(tokens.input_ids for _, tokens in items), np.int32),
        spans=np.array(spans, np.int32),
        lengths=np.array([len(tokens.input_ids) for _, tokens in items], np.int64),
        span_counts=np.array([len(tokens.spans) for _, tokens in items], np.int64),
        trained_counts=np.array([sum(e - s for s, e in tokens.spans) or 1 for _, tokens in items], np.int64),
        labels=[tokens.labels for _, tokens in items],
        parts=[tokens.parts for _, tokens in items],
        numbers=[tokens.numbers for _, tokens in items],
        columns=[tokens.columns for _, tokens in items],
        truncated=np.array([tokens.truncated for _, tokens in items], np.bool_),
        contents=np.array([hashes[id(row)] for row, _ in items], np.int64),
        rows=np.array([row.number for row, _ in items], np.int64),
        files=np.array([number[row.source] for row, _ in items], np.int32),
        adapters=np.array(adapters, np.int32),
        names=names,
        num_rows=0,
        split_rows=sum(len(group) > len({adapter for adapter, _ in group}) for _, _, group in used),
        left_out=[],
    )


def _findings(
    used: list[tuple[Row, Example, list[Item]]], special_tokens: list[str]
) -> dict[str, tuple[int, list[str]]]:
    found: dict[str, tuple[int, list[str]]] = {}
    for row, example, _ in used:
        for kind in findings(example, special_tokens):
            count, places = found.get(kind, (0, []))
            found[kind] = (count + 1, [*places, row.where][:LISTED])
    return found
