"""`tune preview` as a person types it: what it looks at, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tunecli.preview
from tunecli.cli import main
from tunecli.cli import preview as cli_preview
from tunecli.config.run import RunConfig
from tunecli.preview.examples import Wanted


class Seen(Exception):
    """Ends a command where its work would begin."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """`asked(words...)`: the configuration and the examples that a command line asks for."""

    def record(config: RunConfig, wanted: Wanted, *, validation: bool, show_progress: bool) -> None:
        raise Seen(config, wanted, validation)

    monkeypatch.setattr(tunecli.preview, "preview", record)

    def ask(*words: str) -> tuple[RunConfig, Wanted, bool]:
        with pytest.raises(Seen) as caught:
            main(["preview", *words])
        return caught.value.args

    return ask


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["preview", *words]) == 2
    error = capsys.readouterr().err
    assert "error: " in error and "Traceback" not in error
    return error


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; the recipe for files that come without one is one that needs no assets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_preview, "RECIPE", "smoke_sft_full")
    return tmp_path


def test_a_file_takes_the_place_of_the_recipes_data(asked, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "my 'chats', [1] ${x}.jsonl").touch()
    config, wanted, validation = asked("my 'chats', [1] ${x}.jsonl", "data.max_length=99")
    assert config.data.path == "my 'chats', [1] ${x}.jsonl" and config.data.validation is None
    assert config.data.format == "auto" and config.data.max_length == 99
    assert config.recipe == "smoke_sft_full" and "recipe=smoke_sft_full" in capsys.readouterr().err
    assert wanted == Wanted(3) and not validation


def test_a_file_with_a_recipe_of_the_users_choice(asked, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "seed=1.jsonl").touch()
    config, *_ = asked("recipe=smoke_sft_lora", "seed=1.jsonl", "seed=2", "data.validation=0.1")
    assert (config.recipe, config.data.path, config.seed) == ("smoke_sft_lora", "seed=1.jsonl", 2)
    assert config.data.validation == "0.1" and "recipe=" not in capsys.readouterr().err


def test_a_recipe_that_measures_more_than_a_loss(asked, folder: Path):
    (folder / "pairs.jsonl").touch()
    config, *_ = asked("recipe=smoke_seq2seq", "pairs.jsonl")
    assert config.data.path == "pairs.jsonl" and config.data.validation is None


def test_a_run_directory_means_the_data_of_that_run(asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show", "recipe=smoke_sft_full", "data.max_length=77"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    config, *_ = asked(str(tmp_path))
    assert (config.recipe, config.data.max_length) == ("smoke_sft_full", 77)
    assert "cannot change" in refused(capsys, str(tmp_path), "data.max_length=5")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--num", "7"], Wanted(7)),
        (["--row", "a.jsonl:3"], Wanted(3, row="a.jsonl:3")),
        (["--longest", "--num", "1"], Wanted(1, longest=True)),
        (["--random", "5"], Wanted(3, random=5)),
    ],
    ids=str,
)
def test_which_examples(asked, words: list[str], wanted: Wanted):
    assert asked("recipe=smoke_sft_lora", *words)[1] == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no recipe is named"),
        (["smoke_qlora"], "tune preview recipe=smoke_qlora"),
        (["a.jsonl", "b.jsonl"], "data.mix"),
        (["recipe=smoke_sft_lora", "data.max_lenth=5"], "max_length"),
        (["recipe=smoke_sft_lora", "no/such/file.jsonl"], "no/such/file.jsonl"),
        (["recipe=smoke_sft_lora", "train.warmup_steps=999"], "train.warmup_steps"),
    ],
    ids=str,
)
def test_mistakes_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert message in refused(capsys, *words)


@pytest.mark.parametrize("words", [["--num", "-1"], ["--num", "x"], ["--longest", "--random", "1"]], ids=str)
def test_wrong_options(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert "`tune preview --help`" in refused(capsys, "preview", "recipe=smoke_sft_lora", *words)


def test_the_counts_are_those_of_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["recipe=smoke_sft_lora", "data.max_length=40", "train.max_steps=1", "train.warmup_steps=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunecli", "run", *words, f"output_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trained = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    for part, options in (("train", []), ("validation", ["--validation"])):
        assert main(["preview", str(tmp_path / "run"), "--json", "--num", "0", *options]) == 0
        counts = json.loads(capsys.readouterr().out)["statistics"]
        for name in ("rows", "examples", "tokens", "trained_tokens", "truncated", "split_rows"):
            assert counts[name] == trained[part][name], name
        assert f"{counts['examples']:,} examples" in done.stdout


def test_a_page_and_json_and_the_terminal_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.html"
    assert main(["preview", "recipe=smoke_sft_lora", "--html", str(page)]) == 0
    printed = capsys.readouterr()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not printed.out and str(page) in printed.err
    assert main(["preview", "recipe=smoke_sft_lora", "--html", str(page), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["examples"]) == 3
    assert main(["preview", "recipe=smoke_sft_lora"]) == 0
    assert "⟦" in capsys.readouterr().out


def test_output_that_cannot_show_every_character(capsys: pytest.CaptureFixture[str]):
    """A terminal or pipe with another encoding than UTF-8."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunecli", "preview", "recipe=smoke_sft_lora"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u23ce" in done.stdout
