"""The cache of tokenised data: the same examples every time, made once, found again only when nothing changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tunecli.data.dataset as module
import tunecli.data.encode as encoding_module
from tunecli.config.data import DataConfig, OnBadRow, Overlap
from tunecli.config.errors import UserError
from tunecli.config.stage import SFTConfig
from tunecli.data import about
from tunecli.data.examples import Messages
from tunecli.data.mixture import Mixture, build
from tunecli.data.tokenize import tokenize
from tunecli.data.tokens import Encoding


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
    Path(name).write_text(lines, encoding="utf-8")
    return DataConfig(path=name, format="messages")


def prepare(data: DataConfig, tokenizer, **options) -> Mixture:
    train, _ = build(data, tokenizer, Encoding(**{"max_length": 4096} | options), show_progress=False)
    assert train is not None
    return train


def num_cached(tmp_path) -> int:
    return len(list((tmp_path / "cache" / "tokens").iterdir()))


def test_reads_back_what_was_tokenised(family, monkeypatch):
    monkeypatch.setattr(encoding_module, "CHUNK_ROWS", 2)
    tokenizer = family("smollm2")
    found = prepare(write(ROWS), tokenizer)
    expected = [tokenize(Messages(row["messages"]), tokenizer, Encoding(max_length=4096))[0] for row in ROWS]
    assert len(found) == 3
    for i, tokens in enumerate(expected):
        ids, trained = found[i].input_ids, found[i].trained
        assert (ids.dtype, trained.dtype) == (torch.int64, torch.bool)
        assert (ids.tolist(), trained.tolist()) == (tokens.input_ids, tokens.trained)
        assert found.origin(i) == f"train.jsonl row {i + 1}"
    assert found.lengths.tolist() == [len(tokens.input_ids) for tokens in expected]
    assert found.trained_counts.tolist() == [sum(tokens.trained) for tokens in expected]
    assert found.lengths.dtype == found.trained_counts.dtype == np.int64
    summary = found.summary
    assert summary["rows"] == summary["examples"] == 3 and summary["truncated"] == summary["split_rows"] == 0
    assert summary["tokens"] == sum(found.lengths) and summary["trained_tokens"] == sum(found.trained_counts)
    with pytest.raises(IndexError):
        found[3]


def test_rows_that_become_several_examples_keep_their_row(family):
    found = prepare(write([conversation("a", "b"), conversation("a", "b", "c", "d")]), family("qwen3"))
    assert [found.origin(i) for i in range(len(found))] == [f"train.jsonl row {row}" for row in (1, 2, 2)]
    assert found.contents[1] == found.contents[2] != found.contents[0]
    assert found.summary["split_rows"] == 1
    (said,) = about.splits(DataConfig(path="train.jsonl"), SFTConfig(), found)
    assert said.startswith("1 of 2 rows became several examples, because the chat template")


def test_what_is_cut_or_left_out_is_counted_and_said(family):
    data = replace(write([*ROWS, conversation("hello " * 200, "world")]), max_length=100)
    found = prepare(data, family("smollm2"), max_length=100)
    assert found.truncated.tolist() == [False, False, True]
    assert [(entry["row"], entry["why"]) for entry in found.left_out] == [(4, "overlong")]
    assert [line for line, _ in about.losses(data, found)] == [
        "1 of 4 rows is longer than data.max_length=100 allows and is left out; the first: train.jsonl row 4",
        "1 of 3 examples lost its end: data.max_length=100",
    ]


def test_second_call_does_not_tokenise(family, monkeypatch, tmp_path):
    data = write(ROWS)
    first = prepare(data, family("smollm2"))
    monkeypatch.setattr(module, "encode", None)
    write(ROWS, "other_name.jsonl")
    again = prepare(data, family("smollm2"))
    moved = prepare(replace(data, path="other_name.jsonl"), family("smollm2"))
    assert torch.equal(first[1].input_ids, again[1].input_ids)
    assert (again.origin(1), moved.origin(1)) == ("train.jsonl row 2", "other_name.jsonl row 2")
    assert num_cached(tmp_path) == 1


def test_every_change_makes_new_tokens(family, monkeypatch, tmp_path):
    data, tokenizer = write(ROWS), family("smollm2")
    prepare(data, tokenizer)
    prepare(data, tokenizer, train_on_prompt=True)
    prepare(data, tokenizer, max_length=100)
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


def test_a_custom_format_is_read_anew_when_its_code_changes(family, tmp_path, monkeypatch):
    data = replace(write([{"q": "hello", "a": "world"}]), format="custom:my_format:convert")
    code = 'def convert(row):\n    return {"prompt": row["q"], "completion": row["a"] + "%s"}\n'
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_format.py").write_text(code % "!")
    prepare(data, family("smollm2"))
    prepare(data, family("smollm2"))
    assert num_cached(tmp_path) == 1
    Path("my_format.py").write_text(code % "?")
    prepare(data, family("smollm2"))
    assert num_cached(tmp_path) == 2


def test_several_at_once_write_one_folder(family, tmp_path):
    data = write(ROWS * 20)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(data, family("smollm2")), range(4)))
    assert {tuple(one.lengths) for one in found} == {tuple(found[0].lengths)}
    assert num_cached(tmp_path) == 1


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_processes_change_nothing(family, monkeypatch, num_workers):
    monkeypatch.setattr(encoding_module, "CHUNK_ROWS", 7)
    rows = [conversation(f"hello {i}", f"world {i}") for i in range(100)]
    rows[41] = {"messages": []}
    data = replace(write(rows), num_workers=num_workers, on_bad_row=OnBadRow.skip)
    found = prepare(data, family("smollm2"))
    assert found.rows.tolist() == [i + 1 for i in range(100) if i != 41]
    assert [entry["row"] for entry in found.left_out] == [42]
    assert "world 99" in family("smollm2").decode(found[98].input_ids)


def test_a_bad_row_is_named_and_leaves_nothing_behind(family, tmp_path):
    data = write([*ROWS, {"messages": []}])
    with pytest.raises(UserError, match="train.jsonl row 4: (.|\n)*data.on_bad_row=skip"):
        prepare(data, family("smollm2"))
    assert num_cached(tmp_path) == 0


def test_bad_rows_can_be_skipped(family):
    data = replace(write([{"messages": []}, *ROWS, {"text": "x"}]), on_bad_row=OnBadRow.skip)
    found = prepare(data, family("smollm2"))
    assert found.rows.tolist() == [2, 3, 4]
    assert [(entry["source"], entry["row"], entry["why"]) for entry in found.left_out] == [
        ("train.jsonl", 1, "bad"),
        ("train.jsonl", 5, "bad"),
    ]
    ((said, _),) = about.losses(data, found)
    assert said == "2 of 5 rows cannot be used and are left out; the first: train.jsonl row 1"


def test_what_has_no_usable_row_is_refused(family):
    for format in ("messages", "auto"):
        with pytest.raises(UserError, match="train.jsonl: holds no rows"):
            prepare(replace(write([]), format=format), family("smollm2"))
    with pytest.raises(UserError, match="train.jsonl: none of its 2 rows can be used; row 1: "):
        prepare(replace(write([{"messages": []}] * 2), on_bad_row=OnBadRow.skip), family("smollm2"))


def test_folders_of_killed_processes_are_removed(family, tmp_path):
    old, new = (tmp_path / "cache" / "tokens" / name for name in (".partial-old", ".partial-new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    prepare(write(ROWS), family("smollm2"))
    assert not old.exists() and new.exists()


def both(data: DataConfig, tokenizer) -> tuple[Mixture, Mixture]:
    train, validation = build(data, tokenizer, Encoding(), show_progress=False)
    assert train is not None and validation is not None
    return train, validation


def test_validation_has_its_own_tokens(family):
    _, validation = both(replace(write(ROWS), validation="builtin:smoke"), family("smollm2"))
    assert validation.origin(0) == "builtin:smoke row 1" and validation.summary["rows"] > 60


def test_training_never_sees_a_validation_row(family):
    write(ROWS[:2], "held_out.jsonl")
    data = replace(write([*ROWS, ROWS[0]]), validation="held_out.jsonl")
    train, validation = both(data, family("smollm2"))
    assert train.rows.tolist() == [3] and validation.rows.tolist() == [1, 2]
    assert [(entry["row"], entry["why"]) for entry in train.left_out] == [(n, "in validation") for n in (1, 2, 4)]
    train, _ = both(replace(data, overlap=Overlap.keep), family("smollm2"))
    assert len(train) == 4
    with pytest.raises(UserError, match="every training row is a validation row"):
        both(replace(data, path="held_out.jsonl"), family("smollm2"))


def test_a_share_is_held_out_by_content(family):
    rows = [conversation(f"hello {i % 400}", f"world {i % 400}") for i in range(800)]
    data = replace(write(rows), validation="0.2")
    train, validation = both(data, family("smollm2"))
    assert len(train) + len(validation) == 800
    assert len(validation) / 800 == pytest.approx(0.2, abs=0.08)
    assert not set(train.contents) & set(validation.contents)
    more, _ = both(replace(write([conversation("new", "row"), *rows]), validation="0.2"), family("smollm2"))
    assert set(train.contents) <= set(more.contents)
    train, validation = both(replace(data, validation="1e-9"), family("smollm2"))
    assert len(set(validation.contents)) == 1 and len(train) + len(validation) == 801
    with pytest.raises(UserError, match="data.validation: a share of 0.5 leaves none of 3 examples for training"):
        both(replace(write(ROWS[:1] * 3), validation="0.5"), family("smollm2"))


PREPARE = """
import sys, threading
import psutil
from tunecli.config.data import DataConfig
from tunecli.config.model import ModelConfig
from tunecli.data.mixture import build
from tunecli.data.tokens import Encoding
from tunecli.models.load import load_tokenizer

def own_memory():
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared

def watch():
    while not done.wait(0.01):
        seen.append(own_memory())

tokenizer = load_tokenizer(ModelConfig(path="builtin:tiny_llama"))
seen, done = [own_memory()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
train, _ = build(DataConfig(path=sys.argv[1], num_workers=1), tokenizer, Encoding(), show_progress=False)
done.set()
watcher.join()
print(train.summary["tokens"], max(seen) - seen[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells mapped pages of a file from a process's own")
def test_memory_does_not_grow_with_the_data():
    """Twenty times the rows hold 200 MB more of tokens. The cache's mapped pages do not count."""
    used = {}
    for rows in (3_000, 60_000):
        lines = (json.dumps({"text": f"{i} " + "hello " * 150}) for i in range(rows))
        Path("long.jsonl").write_text("\n".join(lines))
        done = subprocess.run(
            [sys.executable, "-c", PREPARE, "long.jsonl"], capture_output=True, text=True, check=True
        )
        tokens, used[rows] = map(int, done.stdout.split())
        assert tokens > 700 * rows
    assert used[60_000] - used[3_000] < 200e6 / 2
