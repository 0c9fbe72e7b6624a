"""`tune report` as a person types it."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest
from fake_run import write_run

from tunecli.cli import main
from tunecli.cli.complete import candidates


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=2)
    return tmp_path


def test_of_one_run_the_page_lies_in_its_directory(runs: Path, capsys: pytest.CaptureFixture[str]):
    (runs / "latest").symlink_to("a")
    assert main(["report", "latest"]) == 0
    assert Path(capsys.readouterr().out.strip()) == runs / "a" / "report.html"
    assert "<h1>sft_lora_smollm2</h1>" in (runs / "a" / "report.html").read_text()


def test_of_several_runs_the_page_compares_them(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", "a", "b"]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    assert "2 runs compared" in (runs / "comparison.html").read_text()


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_the_page_can_lie_elsewhere(runs: Path, names: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["report", *names, "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n" and (runs / "page.html").is_file()
    assert not (runs / "a" / "report.html").exists() and not (runs / "comparison.html").exists()


def test_a_browser_shows_it_when_asked(runs: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    main(["report", "a"])
    assert opened == []
    main(["report", "a", "b", "--open"])
    assert opened == [(runs / "comparison.html").as_uri()]


def test_mistakes_end_with_status_2(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", "missing"]) == 2
    assert main(["report", "a", "a"]) == 2
    assert main(["report", "a", "--out", "missing/page.html"]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_both_verbs_are_completed():
    assert candidates(["rep"]) == ["report"] and candidates(["di"]) == ["diff"]
    assert candidates(["report", "--o"]) == ["--out", "--open"]
