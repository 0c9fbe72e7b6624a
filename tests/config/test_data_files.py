"""Which names are data files here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.data_files import KINDS, exists, has_splits, is_data_file, is_glob, is_local, kind_of
from tunecli.data.readers import READERS


@pytest.fixture(autouse=True)
def inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("train.jsonl", "json_lines", ""),
        ("data/TRAIN.CSV", "csv", ""),
        ("a.b.tsv.gz", "tsv", ".gz"),
        ("train.parquet.zst", "parquet", ".zst"),
        ("train.zip", None, ".zip"),
        ("train.tar.gz", None, ".gz"),
        ("train.xlsx", None, ""),
        ("train", None, ""),
    ],
)
def test_the_name_tells_kind_and_compression(name: str, kind: str | None, compression: str):
    assert kind_of(name) == (kind, compression)
    assert is_data_file(name) == (kind is not None or compression == ".zip")


def test_every_kind_has_a_reader():
    assert set(KINDS.values()) == set(READERS)


@pytest.mark.parametrize(
    "path", ["./x", "../x", "/x", "~/x", "assets/x", "x.csv", "x.json.gz", "x.zip", "x/*", "x/y"]
)
def test_local_paths(path: str):
    Path("x/y").mkdir(parents=True)
    assert is_local(path)


@pytest.mark.parametrize("path", ["tatsu-lab/alpaca", "gsm8k", "org/model-v1.1", "builtin:smoke", "0.05"])
def test_what_the_hub_has_is_not_local(path: str):
    assert not is_local(path)
    assert has_splits(path) == (path != "builtin:smoke")


def test_patterns_exist_if_they_match():
    Path("x").mkdir()
    assert is_glob("x/*.csv") and not exists("x/*.csv")
    Path("x/a.csv").touch()
    assert exists("x/*.csv") and exists("**/*.csv") and exists("x") and not exists("x/b.csv")
    Path("x/[1].csv").touch()
    assert not is_glob("x/[1].csv") and exists("x/[1].csv")


def test_only_a_saved_dict_of_datasets_has_splits_here():
    Path("x").mkdir()
    assert not has_splits("x")
    Path("x/dataset_dict.json").touch()
    assert has_splits("x")


@pytest.mark.parametrize("path", ["d", "d/*.csv", "d/a.csv", "builtin:smoke"])
def test_checks_accept_what_exists(path: str):
    Path("d").mkdir()
    Path("d/a.csv").touch()
    config = compose_run(
        "smoke_sft_lora", [f"data.path={path}", "data.validation=null", "train.eval_every=null"]
    ).config
    assert find_problems(config) == []


@pytest.mark.parametrize("path", ["d/*.csv", "d/a.csv", "./d", "a.parquet.gz"])
def test_checks_name_what_does_not_exist(path: str):
    config = compose_run("smoke_sft_lora", [f"data.path={path}"]).config
    (problem,) = find_problems(config)
    assert (problem.where, problem.what) == ("data.path", f"{path} does not exist")
