"""Examples as the model sees them: which to show, and what text each token stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from tunecli.config.errors import UserError
from tunecli.config.virtual import FIRST_VIRTUAL
from tunecli.data.reading import PAIR, sides_of
from tunecli.data.statistics import longest_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunecli.data.encoded import Encoded
    from tunecli.data.mixture import Mixture

CHARACTER_TOKENS = 6
"""Tokens after which an incomplete character is taken for a broken one: UTF-8 has at most 4 bytes per character."""
RUNS = 12
"""Runs of trained or untrained tokens that are shown of an example; more of them lose their middle."""
SIDES = ("chosen", "rejected")
TWO_SIDED = ("source", "target")
"""Parts of each of them, for an encoder-decoder."""
LINE = 60
"""What a line break counts in characters when a text is shortened."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which examples to show: the first ones, unless one of the others is set."""

    number: int
    row: str | None = None
    """`17` or `FILE:17`"""
    longest: bool = False
    random: int | None = None
    """a seed"""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that make whole characters together: one, or the several that one character is spread over."""

    text: str
    ids: list[int]
    trained: bool
    special: bool = False
    tag: str = ""
    """of the word that ends here"""
    heading: str = ""
    """of the part of the example that begins here"""


@dataclass(frozen=True, slots=True)
class Gap:
    """Pieces that are not shown."""

    tokens: int
    trained: bool


@dataclass(frozen=True, slots=True)
class Example:
    origin: str
    source: str
    tokens: int
    trained_tokens: int
    truncated: bool
    pieces: list[Piece]
    labels: tuple[str, ...] = ()
    """of the whole text"""
    adapter: str = ""
    """the entry of `peft` that it is for, where each row has its own"""
    judgement: str = ""
    """what the row says of its answers"""
    columns: str = ""
    """the other columns of a prompt's row, as JSON"""


def choose(dataset: Mixture, wanted: Wanted) -> list[int]:
    """Indices of the examples to show.

    Raises:
        UserError: no example comes from the wanted row; says why where it is known.
    """
    if wanted.row is not None:
        return _of_row(dataset, wanted.row)
    if wanted.longest:
        return longest_examples(dataset.lengths, wanted.number)
    number = min(wanted.number, len(dataset))
    if wanted.random is not None:
        return np.random.default_rng(wanted.random).choice(len(dataset), number, replace=False).tolist()
    return _first(dataset, number)


def read(dataset: Mixture, index: int, tokenizer: PreTrainedTokenizerBase, adapters: Sequence[str] = ()) -> Example:
    """
    Args:
        adapters: names of those that rows can be for.
    """
    example = dataset[index]
    number = int(dataset.adapters[index])
    ids, trained = example.input_ids, example.trained
    return Example(
        origin=dataset.origin(index),
        source=dataset.names[int(dataset.sources[index])],
        tokens=len(ids),
        trained_tokens=int(trained.sum()),
        truncated=bool(dataset.truncated[index]),
        pieces=_tagged(list(_pieces(tokenizer, example)), example),
        labels=() if _is_tagged(example) else example.labels,
        adapter=adapters[number] if number >= 0 else "",
        judgement=_judgement(example),
        columns=example.columns,
    )


def _pieces(tokenizer: PreTrainedTokenizerBase, example: Encoded) -> Iterator[Piece]:
    """Those of a pair side by side: each part is decoded by itself, and has a heading."""
    ids, trained = example.input_ids.tolist(), example.trained.tolist()
    if len(example.numbers) < PAIR:
        yield from decode(tokenizer, ids, trained)
        return
    parts = sides_of(example)
    headings = SIDES if len(parts) == len(SIDES) else [f"{side}: {part}" for side in SIDES for part in TWO_SIDED]
    for part, heading in zip(parts, headings, strict=True):
        pieces = decode(tokenizer, ids[part], trained[part])
        yield replace(next(pieces), heading=heading)
        yield from pieces


def _judgement(example: Encoded) -> str:
    if len(example.numbers) < PAIR:
        return f"score {example.numbers[0]:g}" if example.numbers and not example.labels else ""
    margin, probability = example.numbers
    said = [f"margin {margin:g}"] if margin else []
    return ", ".join(["a pair", *said, *([f"probability {probability:g}"] if probability != 1 else [])])


def _is_tagged(example: Encoded) -> bool:
    """Whether each span has a label of its own."""
    return len(example.spans) > 0 and len(example.labels) == len(example.spans) and not example.numbers


def _tagged(pieces: list[Piece], example: Encoded) -> list[Piece]:
    """With the tag of each word at its last piece that can be seen."""
    if not _is_tagged(example):
        return pieces
    starts = example.spans[:, 0].tolist()
    word_of = np.searchsorted(starts, np.cumsum([0, *(len(piece.ids) for piece in pieces)])[:-1], side="right") - 1
    last = {word: i for i, word in enumerate(word_of) if pieces[i].text.strip() and not pieces[i].special}
    tags = {i: example.labels[word] for word, i in last.items() if word >= 0}
    return [replace(piece, tag=tags.get(i, "")) for i, piece in enumerate(pieces)]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], trained: list[bool]) -> Iterator[Piece]:
    """The pieces of an example. Their texts, joined, are the text that the tokenizer decodes `ids` to.

    A token's text is what it adds to the text of those before it, as spaces and characters depend on them.
    """
    virtual = {token: f"<v{token - FIRST_VIRTUAL + 1}>" for token in ids if token >= FIRST_VIRTUAL}
    special = _special_tokens(tokenizer) | virtual
    context = done = 0
    for end in range(1, len(ids) + 1):
        if done < end - 1 and (ids[end - 1] in special or trained[end - 1] != trained[done]):
            # What is open can no longer become a whole character.
            text = _added(tokenizer, ids[context:done], ids[context : end - 1])
            yield Piece(text, ids[done : end - 1], trained[done])
            context, done = done, end - 1
        if ids[end - 1] in special:
            yield Piece(special[ids[end - 1]], ids[done:end], trained[done], special=True)
            context, done = end - 1, end
            continue
        text = _added(tokenizer, ids[context:done], ids[context:end])
        if text.endswith("\ufffd") and end < len(ids) and end - done < CHARACTER_TOKENS:
            continue
        yield Piece(text, ids[done:end], trained[done])
        context, done = done, end


def shortened(pieces: list[Piece], room: int | None) -> Iterator[Piece | Gap]:
    """The pieces with the middle of long runs taken out, so that every border of what is trained stays in sight.

    `room`: characters to keep at either end of a run; None: show everything.
    """
    runs = [list(run) for _, run in groupby(pieces, key=lambda piece: piece.trained)]
    if room is None:
        yield from pieces
        return
    left_out = runs[RUNS // 2 : -RUNS // 2] if len(runs) > RUNS + 1 else []
    for i, run in enumerate(runs):
        if left_out and RUNS // 2 <= i < RUNS // 2 + len(left_out):
            if i == RUNS // 2:
                yield Gap(_tokens(piece for each in left_out for piece in each), trained=False)
            continue
        head, tail = _fitting(run, room), _fitting(run[::-1], room)
        if head + tail >= len(run):
            yield from run
            continue
        yield from run[:head]
        yield Gap(_tokens(run[head:-tail]), run[0].trained)
        yield from run[-tail:]


def _of_row(dataset: Mixture, row: str) -> list[int]:
    file, _, number = row.rpartition(":")
    if not number.isascii() or not number.isdecimal():
        raise UserError(f"--row {row}: names no row", fix="a number as in --row 17, or --row FILE:17")
    indices = np.flatnonzero(dataset.rows == int(number)).tolist()
    found = [i for i in indices if not file or _is_file(dataset.origin(i).rpartition(" row ")[0], file)]
    if found:
        return found
    for entry in dataset.left_out:
        if entry["row"] == int(number) and (not file or _is_file(entry["source"], file)):
            where = f"{entry['source']} row {entry['row']}"
            raise UserError(f"is left out ({entry['why']}): {entry['what']}", where=where, fix=entry["fix"])
    last = int(dataset.rows.max())
    fix = f"the last row with an example is {last}" + ("; --row FILE:N for one of several files" if file else "")
    raise UserError(f"--row {row}: no example comes from there", fix=fix)


def _is_file(source: str, wanted: str) -> bool:
    """Whether `wanted` is the source's path or the end of it."""
    wanted = wanted.removeprefix("./")
    return source == wanted or source.endswith(f"/{wanted}")


def _first(dataset: Mixture, number: int) -> list[int]:
    """The first examples of every source, in turn."""
    homes = [np.flatnonzero(dataset.sources == source)[:number].tolist() for source in range(len(dataset.names))]
    in_turn = [home[i] for i in range(number) for home in homes if i < len(home)]
    return in_turn[:number]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Token id -> text of control tokens and other marks, such as <think>. Not of added white space."""
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special or added.content.strip()
    }


def _added(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    """The text that `ids` have beyond that of `before`, which they begin with."""
    known, text = _text(tokenizer, before), _text(tokenizer, ids)
    return text[len(known) :] if text.startswith(known) else _text(tokenizer, ids[len(before) :])


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False) if ids else ""
    assert isinstance(text, str)
    return text


def _fitting(pieces: list[Piece], room: int) -> int:
    """How many of the first pieces have room; at least one."""
    used = 0
    for i, piece in enumerate(pieces):
        used += len(piece.text) + LINE * piece.text.count("\n")
        if used > room:
            return max(i, 1)
    return len(pieces)


def _tokens(pieces: Iterable[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)
