"""The cache of tokenised data: the same examples every time, made once, found again only when nothing changed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import tunecli.data.dataset as module
from tunecli.config.data import DataConfig
from tunecli.config.errors import UserError
from tunecli.data.examples import Messages
from tunecli.data.tokenize import tokenize


@pytest.fixture(autouse=True)
def inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path / "cache"))


def conversation(*contents: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


ROWS = [
    conversation("hello", "world"),
    conversation("你好", "世界 😀", "more", "words"),
    conversation("hello " * 30, "a long answer " * 30),
]


def write(rows, name: str = "train.jsonl") -> DataConfig:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with open(name, "w", encoding="utf-8") as file:
        file.write(lines)
    return DataConfig(path=name, format="messages", max_length=4096)


def prepare(data, tokenizer, **options) -> module.TokenizedDataset:
    settings = {"path": data.path, "train_on_prompt": False, "show_progress": False, **options}
    return module.prepare(data, tokenizer, **settings)


def num_cached(tmp_path) -> int:
    return len(list((tmp_path / "cache" / "tokens").iterdir()))


def test_reads_back_what_was_tokenised(family, monkeypatch):
    monkeypatch.setattr(module, "BATCH_ROWS", 2)
    tokenizer = family("smollm2")
    data = write(ROWS)
    found = prepare(data, tokenizer)
    expected = [
        tokenize(Messages(row["messages"]), tokenizer, max_length=4096, train_on_prompt=False)[0] for row in ROWS
    ]
    assert len(found) == 3
    for i, item in enumerate(expected):
        ids, trained = found[i]
        assert (ids.dtype, trained.dtype) == (torch.int64, torch.bool)
        assert (ids.tolist(), trained.tolist()) == (item.input_ids, item.trained)
        assert found.origin(i) == f"train.jsonl row {i + 1}"
    assert found.lengths.dtype == np.int64
    assert found.lengths.tolist() == [len(item.input_ids) for item in expected]
    assert found.trained_counts.tolist() == [sum(item.trained) for item in expected]
    assert found.summary == {
        "rows": 3,
        "examples": 3,
        "truncated": 0,
        "split_rows": 0,
        "tokens": sum(found.lengths.tolist()),
        "trained_tokens": sum(found.trained_counts.tolist()),
        "fingerprint": found.summary["fingerprint"],
    }
    assert found.notes == []
    with pytest.raises(IndexError):
        found[3]


def test_split_and_truncated_rows_are_counted_and_said(family):
    tokenizer = family("qwen3")
    data = replace(write(ROWS), max_length=60)
    found = prepare(data, tokenizer)
    assert found.summary["rows"] == 2 + 1 and found.summary["split_rows"] == 1
    assert [found.origin(i) for i in range(len(found))] == [f"train.jsonl row {n}" for n in (1, 2, 2, 3)]
    assert found.summary["truncated"] == 1 and max(found.lengths) == 60
    assert any("1 of 3 rows became one example per answer" in note for note in found.notes)
    assert any("1 of 4 examples lost their end" in note for note in found.notes)


def test_second_call_does_not_tokenise(family, monkeypatch, tmp_path):
    data = write(ROWS)
    first = prepare(data, family("smollm2"))
    monkeypatch.setattr(module, "tokenize", None)
    write(ROWS, "other_name.jsonl")
    again = prepare(data, family("smollm2"))
    moved = prepare(replace(data, path="other_name.jsonl"), family("smollm2"))
    assert torch.equal(first[1][0], again[1][0])
    assert (again.origin(1), moved.origin(1)) == ("train.jsonl row 2", "other_name.jsonl row 2")
    assert num_cached(tmp_path) == 1


def test_every_change_makes_new_tokens(family, monkeypatch, tmp_path):
    data, tokenizer = write(ROWS), family("smollm2")
    prepare(data, tokenizer)
    prepare(data, tokenizer, train_on_prompt=True)
    prepare(replace(data, max_length=100), tokenizer)
    prepare(replace(data, max_samples=2), tokenizer)
    prepare(data, family("qwen2_5"))
    prepare(data, family("smollm2", "qwen2_5"))
    prepare(replace(data, chat_template="chatml"), family("smollm2"))
    assert num_cached(tmp_path) == 7
    more_words = family("smollm2")
    more_words.add_tokens(["hello"])
    prepare(data, more_words)
    monkeypatch.setattr(module, "CACHE_VERSION", module.CACHE_VERSION + 1)
    prepare(data, tokenizer)
    write([*ROWS, ROWS[0]])
    prepare(data, tokenizer)
    renamed = write([{"chat": row["messages"]} for row in ROWS], "renamed.jsonl")
    prepare(replace(renamed, columns={"messages": "chat"}), tokenizer)
    assert num_cached(tmp_path) == 11


def test_several_at_once_write_one_folder(family, tmp_path):
    data = write(ROWS * 20)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(data, family("smollm2")), range(4)))
    assert {tuple(one.lengths) for one in found} == {tuple(found[0].lengths)}
    assert num_cached(tmp_path) == 1


def test_a_bad_row_is_named_and_leaves_nothing_behind(family, tmp_path):
    data = write([*ROWS, {"messages": []}])
    with pytest.raises(UserError, match="train.jsonl row 4: "):
        prepare(data, family("smollm2"))
    data = replace(write([*ROWS, conversation("hello " * 200, "world")]), max_length=100)
    with pytest.raises(UserError, match="train.jsonl row 4: .*max_length=100"):
        prepare(data, family("smollm2"))
    assert num_cached(tmp_path) == 0


def test_empty_file_is_refused(family):
    with pytest.raises(UserError, match="train.jsonl: holds no rows"):
        prepare(write([]), family("smollm2"))


def test_validation_has_its_own_tokens(family, tmp_path):
    data = replace(write(ROWS), validation="builtin:smoke")
    found = prepare(data, family("smollm2"), path=data.validation)
    assert found.origin(0) == "builtin:smoke row 1" and found.summary["rows"] > 60
