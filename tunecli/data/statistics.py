"""What a tokenised data set is like, from its columns alone: a million examples take about a second."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

LISTED = 5
"""Examples named in each list: the longest, the most repeated."""
MAX_BINS = 16
LONG_TAIL = 8
"""Lengths that reach this many times their median are counted in bins that double."""


class Columns(Protocol):
    """What is read of a data set, one source or several."""

    names: list[str]
    sources: np.ndarray
    lengths: np.ndarray
    trained_counts: np.ndarray
    rows: np.ndarray
    files: np.ndarray
    contents: np.ndarray
    truncated: np.ndarray
    left_out: list[dict[str, Any]]
    summary: dict[str, Any]

    def __len__(self) -> int: ...
    def origin(self, index: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens per example."""

    min: int
    median: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Examples of `low` to `high` tokens, both included."""

    low: int
    high: int
    examples: int


@dataclass(frozen=True, slots=True)
class LongExample:
    origin: str
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Repeated:
    """Rows of equal content."""

    origin: str
    """the first of them"""
    rows: int


@dataclass(frozen=True, slots=True)
class SourceShare:
    name: str
    rows: int
    """rows that examples were made of"""
    examples: int
    tokens: int
    trained_tokens: int
    truncated: int
    drawn: float
    """share of the examples that training draws"""
    learned: float
    """share of the trained tokens that training meets"""


@dataclass(frozen=True, slots=True)
class Statistics:
    rows: int
    """rows read, those that were left out included"""
    split_rows: int
    """rows that became several examples"""
    examples: int
    tokens: int
    trained_tokens: int
    truncated: int
    """examples that lost a part"""
    left_out: dict[str, int]
    """why -> rows"""
    duplicates: int
    """rows whose content an earlier row has too"""
    most_repeated: list[Repeated]
    lengths: Lengths
    histogram: list[Bin]
    longest: list[LongExample]
    sources: list[SourceShare]


def statistics(dataset: Columns, drawn: Sequence[float] | None = None) -> Statistics:
    """Counts of a data set that holds at least one example.

    `drawn`: share of the examples that training draws from each of `dataset.names`; None: as each has examples.
    """
    starts = _row_starts(dataset)
    duplicates, most_repeated = _duplicates(dataset, starts)
    return Statistics(
        rows=dataset.summary["rows"],
        split_rows=dataset.summary["split_rows"],
        examples=len(dataset),
        tokens=int(dataset.lengths.sum()),
        trained_tokens=int(dataset.trained_counts.sum()),
        truncated=int(dataset.truncated.sum()),
        left_out=dict(Counter(entry["why"] for entry in dataset.left_out)),
        duplicates=duplicates,
        most_repeated=most_repeated,
        lengths=_lengths(dataset.lengths),
        histogram=histogram(dataset.lengths),
        longest=_longest(dataset),
        sources=_sources(dataset, starts, drawn),
    )


def histogram(lengths: np.ndarray) -> list[Bin]:
    """At most MAX_BINS bins of equal width, or bins that double where few examples are much longer than most."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    if longest >= LONG_TAIL * np.median(lengths) and longest > MAX_BINS:
        first = max(shortest - 1, 0).bit_length()
        borders = [0 if shortest <= 1 else 2 ** (first - 1)]
        borders += [2**power for power in range(first, (longest - 1).bit_length() + 1)]
    else:
        width = _round_width((longest - shortest + 1) / (MAX_BINS - 1))
        first = (shortest - 1) // width
        borders = [width * k for k in range(first, -(-longest // width) + 1)]
    counts = np.diff(np.searchsorted(np.sort(lengths), borders, side="right"))
    return [
        Bin(low + 1, high, int(count)) for low, high, count in zip(borders[:-1], borders[1:], counts, strict=True)
    ]


def longest_examples(lengths: np.ndarray, number: int) -> list[int]:
    """Indices of the longest examples, the longest first; the earlier of equals first."""
    number = min(number, len(lengths))
    if number == 0:
        return []
    border = np.partition(lengths, -number)[-number]
    candidates = np.flatnonzero(lengths >= border)
    return candidates[np.argsort(-lengths[candidates], kind="stable")][:number].tolist()


def _round_width(width: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `width`."""
    power = 10 ** math.floor(math.log10(max(width, 1)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width)


def _row_starts(dataset: Columns) -> np.ndarray:
    """[examples] bool: whether an example is the first of its row. Examples of a split row follow each other."""
    if not dataset.summary["split_rows"]:
        return np.ones(len(dataset), np.bool_)
    starts = np.zeros(len(dataset), np.bool_)
    starts[0] = True
    for column in (dataset.files, dataset.rows):
        starts[1:] |= column[1:] != column[:-1]
    return starts


def _duplicates(dataset: Columns, starts: np.ndarray) -> tuple[int, list[Repeated]]:
    firsts = np.flatnonzero(starts)
    _, where, counts = np.unique(dataset.contents[firsts], return_index=True, return_counts=True)
    most = [i for i in np.lexsort((where, -counts))[:LISTED] if counts[i] > 1]
    listed = [Repeated(dataset.origin(int(firsts[where[i]])), int(counts[i])) for i in most]
    return int(len(firsts) - len(counts)), listed


def _lengths(lengths: np.ndarray) -> Lengths:
    quantiles = np.quantile(lengths, [0, 0.5, 0.9, 0.99, 1], method="inverted_cdf")
    return Lengths(*(int(value) for value in quantiles))


def _longest(dataset: Columns) -> list[LongExample]:
    return [
        LongExample(dataset.origin(i), int(dataset.lengths[i]), bool(dataset.truncated[i]))
        for i in longest_examples(dataset.lengths, LISTED)
    ]


def _sources(dataset: Columns, starts: np.ndarray, drawn: Sequence[float] | None) -> list[SourceShare]:
    def totals(weights: np.ndarray) -> np.ndarray:
        # Sums of float64 are exact up to 2**53, which no data set's tokens reach.
        return np.bincount(dataset.sources, weights, minlength=len(dataset.names)).astype(np.int64)

    examples, trained = totals(np.ones(len(dataset))), totals(dataset.trained_counts)
    shares = examples / examples.sum() if drawn is None else np.asarray(drawn)
    learned = shares * trained / np.maximum(examples, 1)
    columns = (
        totals(starts),
        examples,
        totals(dataset.lengths),
        trained,
        totals(dataset.truncated),
        shares,
        learned / learned.sum(),
    )
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    return [SourceShare(name, *values) for name, values in zip(dataset.names, numbers, strict=True)]
