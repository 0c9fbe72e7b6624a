"""What training draws its examples from, step after step: `Shuffled` from tokenized data, `Stream` from rows that are
read and tokenized on the way. Every rank draws the same examples; which rank computes which is `batching`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tunecli.config.data import DataConfig, OnBadRow, SourceConfig, training_sources
from tunecli.config.errors import UserError
from tunecli.data.batching import Examples
from tunecli.data.dataset import format_of, rows_of
from tunecli.data.encode import CHUNK_ROWS, Chunk, RowEncoder, raise_bad_row
from tunecli.data.encoded import Arrays, Encoded
from tunecli.data.mixture import Mixture, in_validation, labels, shares
from tunecli.data.order import SourceSlots, epoch_order, examples_between
from tunecli.data.rows import BadRow, Row
from tunecli.data.tokens import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Feed(Protocol):
    names: list[str]
    """label of each source"""

    def take(self, count: int) -> tuple[Examples, list[int]]:
        """Examples, and the indices of the next `count` among them, in the order of training."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; `load_state_dict` goes on behind the last example that was taken."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class Shuffled:
    """Tokenized examples in an order that is a pure function of the seed and the number of examples taken."""

    examples: Mixture
    seed: int
    shares: Sequence[float] | None = None
    """of the parts of `examples`; None: each example once per epoch"""
    seen: int = 0
    _slots: SourceSlots | None = None

    @property
    def names(self) -> list[str]:
        return self.examples.names

    def take(self, count: int) -> tuple[Examples, list[int]]:
        start, self.seen = self.seen, self.seen + count
        if self.shares is None:
            return self.examples, examples_between(start, self.seen, len(self.examples), seed=self.seed)
        return self.examples, self._mixed(start, self.seen)

    def _mixed(self, start: int, stop: int) -> list[int]:
        assert self.shares is not None
        slots = self._slots = self._slots or SourceSlots(self.shares, self.seed)
        order, before = slots.between(start, stop), slots.before(start)
        indices = np.empty(stop - start, np.int64)
        for source, (first, end) in enumerate(zip(self.examples.starts, self.examples.starts[1:], strict=False)):
            places = np.flatnonzero(order == source)
            drawn, size = int(before[source]), int(end - first)
            indices[places] = np.array(
                examples_between(drawn, drawn + len(places), size, seed=self.seed, source=source), np.int64
            ) + int(first)
        return indices.tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@dataclass(slots=True)
class Window:
    """A few examples in memory."""

    names: list[str]
    examples: list[Encoded] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    adapters: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        return [len(example.input_ids) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Encoded:
        return self.examples[index]

    def origin(self, index: int) -> str:
        return self.origins[index]


TokenizedRow = tuple[Arrays, str, int]
"""the example; file and row; which adapter it is for"""


@dataclass(slots=True)
class SourceStream:
    """The endless examples of one source: blocks of `block_rows` rows, read, tokenized and shuffled one by one.

    A block that holds all rows gives the order of `Shuffled`. To resume, the rows of the block are read once more.
    """

    path: str
    read: Callable[[], Iterator[Row | BadRow]]
    encode: Callable[[list[Row | BadRow]], Chunk]
    report: Callable[[list[dict[str, Any]]], None]
    """is told of the rows that are left out"""
    block_rows: int
    seed: int
    source: int
    exclude: np.ndarray
    """contents of validation rows, which are passed over"""
    epoch: int = 0
    block: int = 0
    used: int = 0
    """examples of the block that were taken"""
    _rows: Iterator[Row | BadRow] | None = None
    _examples: list[TokenizedRow] = field(default_factory=list)
    _order: np.ndarray | None = None
    _fruitful: bool = False
    """whether this epoch has given an example"""

    def take(self) -> TokenizedRow:
        if self._rows is None:
            self._fruitful = self.block > 0 or self.used > 0
            self._rows = islice(self.read(), self.block * self.block_rows, None)
            self._load()
        while self.used >= len(self._examples):
            self._advance()
        self.used += 1
        assert self._order is not None
        return self._examples[self._order[self.used - 1]]

    def _advance(self) -> None:
        self.block, self.used = self.block + 1, 0
        if self._load():
            return
        if not self._fruitful:
            what = "holds no row that can be used and is no validation row"
            raise UserError(what, where=self.path, fix="see left_out.jsonl in the run directory, and `tune check`")
        self.epoch, self.block, self._fruitful = self.epoch + 1, 0, False
        self._rows = self.read()
        self._load()

    def _load(self) -> bool:
        """Read and tokenize the block that the position names. Returns whether there were rows left."""
        assert self._rows is not None
        self._examples = []
        left, any_rows = self.block_rows, False
        while rows := list(islice(self._rows, min(CHUNK_ROWS, left))):
            any_rows, left = True, left - len(rows)
            chunk = self.encode(rows)
            self._examples += _examples(chunk, self.exclude)
            if self.used == 0:
                self.report(chunk.left_out + _held_out(chunk, self.exclude))
        self._fruitful = self._fruitful or bool(self._examples)
        place = {"seed": self.seed, "epoch": self.epoch, "block": self.block, "source": self.source}
        self._order = epoch_order(len(self._examples), **place)
        return any_rows


def _held_out(chunk: Chunk, exclude: np.ndarray) -> list[dict[str, Any]]:
    both = np.flatnonzero(np.isin(chunk.contents, exclude))
    return [in_validation(place) for place in dict.fromkeys(_origin(chunk, int(i)) for i in both)]


def _origin(chunk: Chunk, i: int) -> str:
    return f"{chunk.names[chunk.files[i]]} row {chunk.rows[i]}"


def _examples(chunk: Chunk, exclude: np.ndarray) -> Iterator[TokenizedRow]:
    ids = np.split(chunk.ids, np.cumsum(chunk.lengths)[:-1])
    spans = np.split(chunk.spans, np.cumsum(2 * chunk.span_counts)[:-1])
    for i in np.flatnonzero(~np.isin(chunk.contents, exclude)):
        arrays = (ids[i], spans[i], chunk.labels[i], chunk.parts[i], chunk.numbers[i], chunk.columns[i])
        yield arrays, _origin(chunk, int(i)), int(chunk.adapters[i])


def window_of(chunk: Chunk, name: str) -> Window:
    """The examples of a chunk, all of the source `name`."""
    window = Window([name])
    for arrays, origin, adapter in _examples(chunk, np.zeros(0, np.int64)):
        window.examples.append(Encoded.of(*arrays))
        window.sources.append(0)
        window.origins.append(origin)
        window.adapters.append(adapter)
    return window


@dataclass(slots=True)
class Stream:
    """Rows that are tokenized on the way, from one source or from several in given shares."""

    sources: list[SourceStream]
    labels: list[str]
    slots: SourceSlots
    seen: int = 0

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(self.labels))

    def take(self, count: int) -> tuple[Examples, list[int]]:
        start, self.seen = self.seen, self.seen + count
        window = Window(self.names)
        for source in self.slots.between(start, self.seen):
            arrays, origin, adapter = self.sources[source].take()
            window.examples.append(Encoded.of(*arrays))
            window.sources.append(window.names.index(self.labels[source]))
            window.origins.append(origin)
            window.adapters.append(adapter)
        return window, list(range(count))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "sources": [[s.epoch, s.block, s.used] for s in self.sources]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        for source, (epoch, block, used) in zip(self.sources, state["sources"], strict=True):
            source.epoch, source.block, source.used = epoch, block, used


def stream(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    *,
    seed: int,
    exclude: np.ndarray,
    report: Callable[[list[dict[str, Any]]], None],
) -> Stream:
    """The stream that `data.streaming` asks for. Rows whose content is in `exclude` are passed over."""
    sources = training_sources(data)
    weights = shares(data, [1] * len(sources)) or [1.0]
    return Stream(
        sources=[
            SourceStream(
                path=source.path,
                read=partial(rows_of, source, data.sample_by, streaming=True),
                encode=_encoder(data, source, tokenizer, encoding),
                report=report,
                block_rows=data.shuffle_buffer,
                seed=seed,
                source=number if data.mix else 0,
                exclude=exclude,
            )
            for number, source in enumerate(sources)
        ],
        labels=labels(sources),
        slots=SourceSlots(weights, seed),
    )


def _encoder(
    data: DataConfig, source: SourceConfig, tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> Callable[[list[Row | BadRow]], Chunk]:
    encoder = RowEncoder(format_of(source, data.sample_by, encoding.reads, streaming=True), tokenizer, encoding)

    def encode(rows: list[Row | BadRow]) -> Chunk:
        chunk = encoder(rows)
        if data.on_bad_row is OnBadRow.error:
            raise_bad_row(chunk.left_out)
        return chunk

    return encode
