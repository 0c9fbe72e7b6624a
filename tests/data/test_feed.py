"""What training draws from: mixtures in given shares, streams that shuffle and resume like tokenized data."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import batching

from tunecli.config.data import DataConfig, Mixing, OnBadRow, SourceConfig
from tunecli.config.errors import UserError
from tunecli.data.batching import microbatches
from tunecli.data.feed import Shuffled, Stream, stream
from tunecli.data.mixture import Mixture, build, labels, shares
from tunecli.data.tokens import Encoding


@pytest.fixture(autouse=True)
def inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNECLI_CACHE", str(tmp_path / "cache"))


def write(name: str, count: int) -> str:
    Path(name).write_text("".join(json.dumps({"text": f"{name} number {i}"}) + "\n" for i in range(count)))
    return name


def config(*sizes: int, **options) -> DataConfig:
    """One file of so many rows, or a mixture of several."""
    paths = [write(f"{'abc'[i]}.jsonl", size) for i, size in enumerate(sizes)]
    if len(paths) == 1:
        return DataConfig(path=paths[0], **options)
    weights = options.pop("weights", [None] * len(paths))
    mix = [SourceConfig(path=path, weight=weight) for path, weight in zip(paths, weights, strict=True)]
    return DataConfig(path=None, mix=mix, **options)


def shuffled(data: DataConfig, tokenizer, seed: int = 0) -> Shuffled:
    train, _ = build(data, tokenizer, Encoding(), show_progress=False)
    return Shuffled(train, seed, shares(data, np.diff(train.starts).tolist()))


def streamed(data: DataConfig, tokenizer, seed: int = 0, exclude=(), report=lambda entries: None) -> Stream:
    return stream(data, tokenizer, Encoding(), seed=seed, exclude=np.array(exclude, np.int64), report=report)


def origins(feed, count: int, pieces: int = 1) -> list[str]:
    found = []
    for _ in range(pieces):
        examples, indices = feed.take(count // pieces)
        found += [examples.origin(i) for i in indices]
    return found


def test_an_epoch_of_a_proportional_mixture_has_every_example_once(plain_tokenizer):
    found = origins(shuffled(config(30, 10), plain_tokenizer), 80)
    assert len(set(found[:40])) == len(set(found[40:])) == 40
    assert found[:40] != found[40:]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mixing": Mixing.equal}, [1 / 3, 1 / 3, 1 / 3]),
        ({"mixing": Mixing.weights, "weights": [1.0, 2.0, 5.0]}, [1 / 8, 2 / 8, 5 / 8]),
        ({"mixing": Mixing.temperature, "mixing_temperature": 2.0}, [4 / 7, 2 / 7, 1 / 7]),
        ({"mixing": Mixing.temperature, "mixing_temperature": 1.0}, [16 / 21, 4 / 21, 1 / 21]),
    ],
)
def test_shares_hold(plain_tokenizer, options, expected):
    data = config(160, 40, 10, **options)
    for feed in [shuffled(data, plain_tokenizer)] + (
        [streamed(data, plain_tokenizer)] if "temp" not in str(options) else []
    ):
        found = Counter(origin[0] for origin in origins(feed, 4000, pieces=8))
        assert [found[name] / 4000 for name in "abc"] == pytest.approx(expected, abs=0.002)


def test_a_source_that_comes_up_often_repeats_no_row_before_all_were_seen(plain_tokenizer):
    data = config(20, 1000, mixing=Mixing.equal)
    of_the_small = [o for o in origins(shuffled(data, plain_tokenizer), 200, pieces=4) if o.startswith("a.jsonl")]
    laps = [of_the_small[i : i + 20] for i in range(0, 80, 20)]
    assert all(len(set(lap)) == 20 for lap in laps)


@pytest.mark.parametrize("kind", [shuffled, streamed])
@pytest.mark.parametrize("sizes", [(37,), (25, 9)])
@pytest.mark.parametrize("done", [0, 1, 12, 36, 37, 50, 90])
def test_a_resumed_feed_loses_and_repeats_nothing(plain_tokenizer, kind, sizes, done):
    data = config(*sizes, shuffle_buffer=8, mixing=Mixing.proportional if len(sizes) == 1 else Mixing.equal)
    whole = origins(kind(data, plain_tokenizer), 120)
    first = kind(data, plain_tokenizer)
    begun = origins(first, done)
    second = kind(data, plain_tokenizer)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + origins(second, 120 - done) == whole


def test_a_stream_is_the_tokenized_data_where_the_buffer_holds_all(plain_tokenizer):
    data = config(60, shuffle_buffer=60)
    expected = shuffled(data, plain_tokenizer, seed=5)
    found = streamed(data, plain_tokenizer, seed=5)
    for _ in range(4):
        (a, i), (b, j) = expected.take(31), found.take(31)
        assert [a.origin(k) for k in i] == [b.origin(k) for k in j]
        for k, m in zip(i, j, strict=True):
            assert torch.equal(a[k].input_ids, b[m].input_ids) and torch.equal(a[k].trained, b[m].trained)


def test_a_mixed_stream_is_the_mixed_tokenized_data_where_the_buffer_holds_all(plain_tokenizer):
    data = config(60, 20, mixing=Mixing.weights, weights=[1.0, 3.0])
    assert origins(streamed(data, plain_tokenizer), 500) == origins(shuffled(data, plain_tokenizer), 500)


def test_a_stream_shuffles_within_its_buffer_and_sees_every_row_once_an_epoch(plain_tokenizer):
    found = origins(streamed(config(100, shuffle_buffer=30), plain_tokenizer), 200)
    rows = [int(origin.rpartition(" ")[2]) for origin in found]
    assert sorted(rows[:100]) == sorted(rows[100:]) == list(range(1, 101))
    assert sorted(rows[:30]) == list(range(1, 31)) and rows[:30] != list(range(1, 31))
    assert rows[:100] != rows[100:]


def test_a_stream_reads_no_further_than_its_buffer(plain_tokenizer):
    data = config(50, shuffle_buffer=10)
    Path("a.jsonl").write_text(Path("a.jsonl").read_text() + "not json\n")
    feed = streamed(data, plain_tokenizer)
    assert len(origins(feed, 50)) == 50
    with pytest.raises(UserError, match="a.jsonl row 51: not JSON"):
        feed.take(1)


def test_bad_rows_of_a_stream_are_passed_over_and_reported(plain_tokenizer):
    data = config(20, shuffle_buffer=8, on_bad_row=OnBadRow.skip)
    Path("a.jsonl").write_text("{}\n" + Path("a.jsonl").read_text() + '{"text": 3}\n')
    told: list[dict] = []
    found = origins(streamed(data, plain_tokenizer, report=told.extend), 20)
    assert len(set(found)) == 20
    assert [(entry["row"], entry["why"]) for entry in told] == [(1, "bad"), (22, "bad")]


def test_validation_rows_never_come_up_in_a_stream(plain_tokenizer):
    data = config(20)
    train, _ = build(data, plain_tokenizer, Encoding(), show_progress=False)
    told: list[dict] = []
    found = origins(streamed(data, plain_tokenizer, exclude=train.contents[:5], report=told.extend), 15)
    assert [(entry["row"], entry["why"]) for entry in told] == [(row, "in validation") for row in range(1, 6)]
    assert sorted(int(origin.rpartition(" ")[2]) for origin in found) == list(range(6, 21))


def test_a_stream_without_a_usable_row_ends(plain_tokenizer):
    data = replace(config(3), on_bad_row=OnBadRow.skip, format="messages")
    with pytest.raises(UserError, match="a.jsonl: holds no row that can be used"):
        streamed(data, plain_tokenizer).take(1)


def test_names_are_those_of_the_tasks(plain_tokenizer):
    data = config(4, 4, 4)
    data.mix[0].task = data.mix[2].task = "qa"
    train, _ = build(data, plain_tokenizer, Encoding(), show_progress=False)
    assert isinstance(train, Mixture) and train.names == ["qa", "b"]
    assert train.sources.tolist() == [0] * 4 + [1] * 4 + [0] * 4


@pytest.mark.parametrize("kind", [shuffled, streamed])
def test_processes_share_the_rows_that_one_would_see(plain_tokenizer, kind):
    data = config(40, 13, mixing=Mixing.equal, shuffle_buffer=16)
    seen: dict[tuple[int, int], list[list[str]]] = {}
    for number in (1, 2, 3):
        for process in range(number):
            feed, steps = kind(data, plain_tokenizer), []
            for _ in range(5):
                examples, indices = feed.take(16)
                batches = microbatches(examples, indices, batching(rows=4, process=process, of=number))
                steps.append([examples.origin(row) for batch in batches for row in batch.rows])
            seen[number, process] = steps
    for step in range(5):
        alone = sorted(seen[1, 0][step])
        assert sorted(seen[2, 0][step] + seen[2, 1][step]) == alone
        assert sorted(seen[3, 0][step] + seen[3, 1][step] + seen[3, 2][step]) == alone


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/train.jsonl", "b/train.csv.gz"], ["a/train", "b/train"]),
        (["a/train.jsonl", "a/train.csv.gz"], ["a/train.jsonl", "a/train.csv.gz"]),
        (["a/train.jsonl", "b/train.jsonl"], ["a/train", "b/train"]),
        (["train.jsonl", "b/train.jsonl"], ["train", "b/train"]),
        (["tatsu-lab/alpaca", "builtin:smoke", "data/"], ["alpaca", "smoke", "data"]),
        (["data/*.jsonl"], ["*"]),
        (["a.jsonl", "a.jsonl"], ["a", "a"]),
    ],
)
def test_sources_are_named_by_what_tells_them_apart(paths, names):
    assert labels([SourceConfig(path=path) for path in paths]) == names
