"""The parts of the benchmark that need no run: its rows, and what it makes of a run's lines."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module("sft_vs_trl")
    for name in ("sft_vs_trl", "instruction_data"):
        del sys.modules[name]


def test_rows_have_the_lengths_of_instruction_data_and_depend_on_the_seed_alone(bench):
    data = importlib.import_module("instruction_data")
    snippets = [" ".join(["word"] * (5 + i % 30)) + f" {i}." for i in range(500)]
    rows = list(data.make_rows(snippets, num_rows=400, seed=0))
    assert rows == list(data.make_rows(snippets, num_rows=400, seed=0))
    assert rows != list(data.make_rows(snippets, num_rows=400, seed=1))

    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
    words = [sum(data.num_words(turn["content"]) for turn in row["messages"]) for row in rows]
    assert median(words) == pytest.approx(data.MEDIAN_WORDS, rel=0.2)
    assert data.MOST_WORDS * 0.9 < max(words) < data.MOST_WORDS + 36  # ends with a whole snippet


def test_warm_up_steps_count_for_memory_but_not_for_speed(bench):
    steps = [
        {"tokens": 1000, "seconds_per_step": 99.0, "memory_peak_bytes": 5e9},
        {"tokens": 1300, "seconds_per_step": 1.0, "memory_peak_bytes": 6e9},
        {"tokens": 1900, "seconds_per_step": 3.0, "memory_peak_bytes": 6e9},
    ]
    assert bench.counted(steps, 1) == {
        "tokens_per_second": 225,
        "tokens_per_step": 450,
        "seconds_per_step": 2,
        "memory_peak_bytes": 6e9,
    }
    assert bench.counted(steps, 0)["tokens_per_second"] == pytest.approx(1900 / 103)


def test_ratios_compare_runs_of_the_same_round(bench):
    speeds = {("tunecli", 1): 200.0, ("trl_tuned", 1): 100.0, ("tunecli", 2): 90.0, ("trl_tuned", 2): 30.0}
    rest = dict.fromkeys(bench.Result.__slots__, 0.0)
    results = [
        bench.Result(**rest | {"contestant": name, "round": number, "tokens_per_second": speed})
        for (name, number), speed in speeds.items()
    ]
    assert bench.ratios(results, "trl_tuned") == [2.0, 3.0]
