"""Few-shot rows: so many of each label, by seed and content, whatever their order."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tunecli.config.data import DataConfig, SourceConfig
from tunecli.config.errors import UserError
from tunecli.config.stage import Task
from tunecli.data.mixture import Mixture, build
from tunecli.data.shots import few
from tunecli.data.tokens import Encoding
from tunecli.models.builtin import byte_encoder_tokenizer

ROWS = [{"text": f"text {i}", "label": "abc"[i % 3]} for i in range(60)]


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(data: DataConfig) -> Mixture:
    encoding = Encoding(task=Task.sequence_classification)
    train, _ = build(data, byte_encoder_tokenizer(), encoding, show_progress=False)
    assert train is not None
    return train


def contents(examples: Mixture) -> set[tuple]:
    return {(tuple(examples[i].input_ids.tolist()), examples[i].labels) for i in range(len(examples))}


def test_each_label_has_so_many_rows_and_their_order_does_not_matter(tmp_path: Path) -> None:
    chosen = []
    for seed in range(2):
        shuffled = random.Random(seed).sample(ROWS, len(ROWS))
        examples = prepared(DataConfig(path=written(tmp_path / f"{seed}.jsonl", shuffled)))
        found = few(examples, 4, seed=7)
        assert Counter(found[i].labels for i in range(len(found))) == {("a",): 4, ("b",): 4, ("c",): 4}
        assert found.lengths.tolist() == [len(found[i].input_ids) for i in range(len(found))]
        chosen.append(contents(found))
    assert chosen[0] == chosen[1]
    assert contents(few(examples, 4, seed=8)) != chosen[0]
    assert chosen[0] < contents(few(examples, 5, seed=7))


def test_more_rows_of_another_label_change_nothing(tmp_path: Path) -> None:
    more = [*ROWS, *({"text": f"more {i}", "label": "d"} for i in range(9))]
    few_of = [few(prepared(DataConfig(path=written(tmp_path / name, rows))), 4, seed=7)
              for name, rows in (("a.jsonl", ROWS), ("b.jsonl", more))]  # fmt: skip
    assert contents(few_of[0]) == {each for each in contents(few_of[1]) if each[1] != ("d",)}


def test_equal_rows_count_once(tmp_path: Path) -> None:
    rows = [{"text": "same", "label": "a"}] * 5 + [
        {"text": f"x {i}", "label": label} for i in range(3) for label in "ab"
    ]
    found = few(prepared(DataConfig(path=written(tmp_path / "x.jsonl", rows))), 3, seed=0)
    assert len({tokens for tokens, labels in contents(found) if labels == ("a",)}) == 3
    with pytest.raises(UserError, match="4 different rows with the label 'a'"):
        few(prepared(DataConfig(path=str(tmp_path / "x.jsonl"))), 5, seed=0)


def test_each_source_has_its_own(tmp_path: Path) -> None:
    paths = [written(tmp_path / "a.jsonl", ROWS[:30]), written(tmp_path / "b.jsonl", ROWS[30:])]
    found = few(prepared(DataConfig(path=None, mix=[SourceConfig(path=path) for path in paths])), 2, seed=0)
    assert Counter(found.sources.tolist()) == {0: 6, 1: 6}
    assert found.starts.tolist() == [0, 6, 12] and found.names == ["a", "b"]
