"""`tune cp --from FILE` on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tunecli.cli import main
from tunecli.config.compose import compose_run

THEIRS = Path(__file__).parents[1] / "fixtures" / "foreign" / "axolotl" / "qlora.yml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_is_written_and_what_differs_is_said(capsys: pytest.CaptureFixture[str]):
    assert main(["cp", "--from", str(THEIRS), "--processes", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("wrote qlora.yaml\n") and out.endswith("next: tune check recipe=./qlora.yaml\n")
    assert "- sample_packing: " in out and "needed no counterpart: model_type" in out
    assert compose_run("./qlora.yaml", []).config.train.global_batch_size == 16


def test_the_recipe_goes_where_it_is_asked_to(capsys: pytest.CaptureFixture[str]):
    assert main(["cp", "--from", str(THEIRS), "mine/ours.yaml"]) == 0
    assert "next: tune check recipe=mine/ours.yaml" in capsys.readouterr().out
    assert main(["cp", "--from", str(THEIRS), "mine/ours.yaml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["cp", "--from", str(THEIRS), "mine", "--force"]) == 0
    assert sorted(path.name for path in Path("mine").iterdir()) == ["ours.yaml", "qlora.yaml"]


def test_their_file_is_never_replaced(capsys: pytest.CaptureFixture[str]):
    shutil.copy(THEIRS, "train.yaml")
    assert main(["cp", "--from", "train.yaml", "--force"]) == 2
    assert "tune cp --from train.yaml train_tune.yaml" in capsys.readouterr().err
    assert Path("train.yaml").read_bytes() == THEIRS.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "none.yaml"], "no such file"),
        (["--from", str(THEIRS), "a.yaml", "b.yaml"], "at once"),
        (["--from", str(THEIRS), "--processes", "0"], "--processes is 0"),
        (["--from", str(THEIRS), "ours"], "ours.yaml"),
        (["smoke_qlora", "--processes", "2"], "belongs to --from"),
        ([], "nothing is named"),
    ],
)
def test_wrong_words_write_nothing(here: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["cp", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error
    assert not list(here.iterdir())


def test_a_training_that_we_do_not_have_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cp", "--from", str(THEIRS.with_name("instruct-dpo-lora-8b.yml"))]) == 2
    assert "rl = dpo" in capsys.readouterr().err and not list(here.iterdir())
