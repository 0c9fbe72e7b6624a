"""Statistics against the same counts made one by one, and the laws of the histogram."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tunecli.data.statistics import MAX_BINS, histogram, longest_examples, statistics


@dataclass
class FakeDataset:
    names: list[str]
    sources: np.ndarray
    lengths: np.ndarray
    trained_counts: np.ndarray
    rows: np.ndarray
    files: np.ndarray
    contents: np.ndarray
    truncated: np.ndarray
    summary: dict[str, Any]
    left_out: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lengths)

    def origin(self, index: int) -> str:
        return f"{self.names[self.sources[index]]}.jsonl row {self.rows[index]}"


def fake(count: int, seed: int = 0, num_sources: int = 3) -> FakeDataset:
    """Random columns; about every tenth row became two examples, and contents repeat."""
    rng = np.random.default_rng(seed)
    sources = np.sort(rng.integers(0, num_sources, count)).astype(np.int32)
    rows = np.cumsum(rng.random(count) < 0.9) + 1
    lengths = rng.integers(2, 400, count)
    row_contents = rng.integers(-(2**63), 2**63, rows.max() + 1)[rng.integers(0, rows.max() + 1, rows.max() + 1)]
    return FakeDataset(
        names=[f"set{i}" for i in range(num_sources)],
        sources=sources,
        lengths=lengths,
        trained_counts=rng.integers(1, lengths),
        rows=rows,
        files=sources,
        contents=row_contents[rows],
        truncated=rng.random(count) < 0.1,
        summary={"rows": int(rows.max()) + 7, "split_rows": int(count - len(np.unique(rows)))},
        left_out=[{"why": "bad"}] * 5 + [{"why": "overlong"}] * 2,
    )


def test_counts_are_those_of_counting_one_by_one():
    dataset = fake(500)
    stats = statistics(dataset)
    row_of = list(zip(dataset.sources.tolist(), dataset.rows.tolist(), strict=True))
    content_of = dict(zip(row_of, dataset.contents.tolist(), strict=True))
    repeats = Counter(content_of.values())
    assert stats.duplicates == sum(count - 1 for count in repeats.values()) > 0
    assert [each.rows for each in stats.most_repeated] == sorted(repeats.values(), reverse=True)[:5]
    first = next(row for row, content in content_of.items() if repeats[content] == stats.most_repeated[0].rows)
    assert stats.most_repeated[0].origin == f"set{first[0]}.jsonl row {first[1]}"
    assert (stats.examples, stats.tokens) == (500, sum(dataset.lengths.tolist()))
    assert stats.trained_tokens == sum(dataset.trained_counts.tolist())
    assert stats.truncated == sum(dataset.truncated.tolist())
    assert stats.rows == dataset.summary["rows"] and stats.left_out == {"bad": 5, "overlong": 2}
    for number, source in enumerate(stats.sources):
        own = [i for i in range(500) if dataset.sources[i] == number]
        assert source.rows == len({row for row in row_of if row[0] == number})
        assert source.examples == len(own)
        assert source.tokens == sum(int(dataset.lengths[i]) for i in own)
        assert source.trained_tokens == sum(int(dataset.trained_counts[i]) for i in own)
        assert source.truncated == sum(bool(dataset.truncated[i]) for i in own)
        assert source.drawn == pytest.approx(len(own) / 500)
        assert source.learned == pytest.approx(source.trained_tokens / stats.trained_tokens)


def test_without_split_rows_every_example_is_a_row():
    """Documents of a folder are all row 1 of their file."""
    dataset = fake(4, num_sources=1)
    dataset.rows, dataset.contents = np.ones(4, np.int64), np.array([8, 8, 8, 9])
    dataset.summary["split_rows"] = 0
    stats = statistics(dataset)
    assert stats.duplicates == 2 and stats.sources[0].rows == 4


def test_shares_of_training_follow_what_is_drawn():
    dataset = fake(6, num_sources=2)
    dataset.sources = np.array([0, 0, 0, 0, 1, 1])
    dataset.trained_counts = np.array([10, 10, 10, 10, 30, 30])
    equal = statistics(dataset, drawn=[0.5, 0.5]).sources
    assert [source.drawn for source in equal] == [0.5, 0.5]
    assert [source.learned for source in equal] == pytest.approx([0.25, 0.75])
    assert [source.learned for source in statistics(dataset).sources] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("highest", [1, 2, 17, 300, 2048, 100_000])
def test_every_example_is_in_one_bin(highest: int, seed: int):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.integers(1, highest + 1, 200), rng.integers(1, highest + 1, 200))
    bins = histogram(lengths)
    assert 1 <= len(bins) <= MAX_BINS + 1
    for each in bins:
        assert each.examples == sum(each.low <= length <= each.high for length in lengths)
    assert [each.low for each in bins[1:]] == [each.high + 1 for each in bins[:-1]]
    assert sum(each.examples for each in bins) == 200
    assert bins[0].examples and bins[-1].examples


def test_a_long_tail_is_counted_in_bins_that_double():
    lengths = np.array([20, 30, 40] * 50 + [5000])
    bins = histogram(lengths)
    assert all(each.high == 2 * (each.low - 1) for each in bins)
    assert (bins[0].low, bins[-1].high) == (17, 8192)
    even = histogram(np.arange(100, 200))
    assert len({each.high - each.low for each in even}) == 1


def test_the_longest_come_first_and_the_earlier_of_equals():
    assert longest_examples(np.array([5, 9, 7, 9, 1]), 3) == [1, 3, 2]
    assert longest_examples(np.array([5, 9]), 5) == [1, 0]
    assert longest_examples(np.array([5, 9]), 0) == []


def test_lengths_are_lengths_that_occur():
    dataset = fake(4)
    dataset.lengths = np.array([1, 2, 3, 100])
    lengths = statistics(dataset).lengths
    assert (lengths.min, lengths.median, lengths.p90, lengths.p99, lengths.max) == (1, 2, 100, 100, 100)


def test_a_million_examples_are_counted_at_once():
    dataset = fake(1_000_000)
    started = time.perf_counter()
    stats = statistics(dataset)
    assert time.perf_counter() - started < 10  # under a second on a quiet machine
    assert sum(source.examples for source in stats.sources) == stats.examples == 1_000_000
