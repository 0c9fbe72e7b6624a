"""The parts of the table of PEFT methods that need no real model: what is run, what is kept, and what is shown."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tunecli.config.peft import PEFT_SCHEMAS

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module("peft_table")
    for name in ("peft_table", "bench_results", "peft_rows", "peft_minilm"):
        sys.modules.pop(name, None)


class Runs:
    """Stands in for real runs: the second rate is the best, and seed 2 fails once."""

    def __init__(self) -> None:
        self.made: list[tuple[float, int]] = []
        self.broken = True

    def __call__(self, row: str, rate: float, seed: int, steps: int, folder: Path) -> dict:
        self.made.append((rate, seed))
        if seed == 2 and self.broken:
            raise RuntimeError("killed")
        validation = {5e-4: 0.8, 1.5e-3: 0.9, 5e-3: 0.5}[rate]
        sizes = {"trained": 5000, "base": 1_000_000, "memory_peak_bytes": 2e9, "adapter_bytes": 20_000}
        return sizes | {"validation": validation, "test": 0.7 + seed / 10, "tokens_per_second": 100.0, "seconds": 1.0}


@pytest.fixture
def runs(bench, monkeypatch) -> Runs:
    runs = Runs()
    monkeypatch.setitem(bench.PARTS, "minilm", dataclasses.replace(bench.PARTS["minilm"], run=runs))
    return runs


def test_every_method_has_a_row(bench):
    used = {method.method for row in bench.MINILM.values() for method in row.methods.values()}
    assert used == set(PEFT_SCHEMAS)


def test_the_rate_is_chosen_with_one_seed_and_what_failed_is_all_that_runs_again(bench, runs, tmp_path):
    results = bench.Results(tmp_path / "runs.jsonl")
    bench.finish_row("minilm", "lora", [0, 1, 2], 200, results)
    assert runs.made == [(5e-4, 0), (1.5e-3, 0), (5e-3, 0), (1.5e-3, 1), (1.5e-3, 2)]
    assert len(results.read()) == 4

    runs.made.clear()
    runs.broken = False
    bench.finish_row("minilm", "lora", [0, 1, 2], 200, results)
    assert runs.made == [(1.5e-3, 2)]
    runs.made.clear()
    bench.finish_row("minilm", "lora", [0], 100, results)
    assert len(runs.made) == 3  # another number of steps is another run


def test_the_table_shows_runs_at_the_chosen_rate(bench, runs, tmp_path):
    runs.broken = False
    results = bench.Results(tmp_path / "runs.jsonl")
    bench.finish_row("minilm", "lora", [0, 1, 2], 200, results)
    heading, line = bench.table("minilm", results.read(), [0, 1, 2], 200)
    shown = dict(zip(heading, line, strict=True))
    assert shown.pop("method") == "lora"
    assert list(shown.values()) == [
        "5,000", "0.500 %", "80.0 ± 10.0 (70.0 to 90.0)", "0.0015 (3 x)", "2.00 GB", "100", "20.0 kB", "3",
    ]  # fmt: skip
    assert bench.as_markdown([heading, line]).splitlines()[2].startswith("| lora | 5,000 | 0.500 % |")
    assert len({len(row) for row in bench.as_text([heading, line]).splitlines()}) == 1


def test_a_run_directory_gives_a_row(bench, tmp_path):
    lines = [
        {"step": 0, "eval/exact_match": 0.1, "eval/choice_accuracy": 0.6},
        *({"step": i, "loss": 1.0, "tokens_per_second": 100.0 * i, "memory_peak_bytes": 10 * i, "seconds": i}
          for i in (1, 2, 3)),
        {"step": 3, "eval/exact_match": 0.8, "eval/choice_accuracy": 0.9},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "log.txt").write_text("trains 4,884,480 of 139,399,488 parameters (3.50%), bf16\n")
    (tmp_path / "adapter" / "lora").mkdir(parents=True)
    (tmp_path / "adapter" / "lora" / "adapter_model.safetensors").write_bytes(b"x" * 70)
    (tmp_path / "adapter" / "tokenizer.json").write_text("not part of it")
    assert bench.read_run(tmp_path) == {
        "test": 0.8, "choices": 0.9, "trained": 4_884_480, "base": 134_515_008, "memory_peak_bytes": 30,
        "tokens_per_second": 200.0, "seconds": 3, "adapter_bytes": 70,
    }  # fmt: skip


def test_virtual_tokens_stand_behind_the_first_one_and_are_no_text(bench):
    minilm = importlib.import_module("peft_minilm")
    reviews = minilm.Reviews([[101, 7, 102], [101, 8, 9, 102]], [0, 1])
    rows = minilm.collate(reviews, [1, 0], [900, 901])
    assert rows.input_ids.tolist() == [[101, 900, 901, 8, 9, 102], [101, 900, 901, 7, 102, 0]]
    assert rows.attention_mask.tolist() == [[1] * 6, [1] * 5 + [0]]
    assert rows.text.int().tolist() == [[1, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0]]
    assert rows.labels.tolist() == [1, 0]


def test_an_epoch_has_no_review_twice_and_the_seed_alone_decides_the_order(bench):
    minilm = importlib.import_module("peft_minilm")
    lengths = [10 + i % 7 for i in range(100)]

    def epoch(seed: int) -> list[list[int]]:
        batches = minilm.shuffled(lengths, seed)
        return [next(batches) for _ in range(len(lengths) // minilm.BATCH_SIZE)]

    seen = [row for batch in epoch(0) for row in batch]
    assert len(set(seen)) == len(seen) == 96
    assert epoch(0) == epoch(0) != epoch(1)
