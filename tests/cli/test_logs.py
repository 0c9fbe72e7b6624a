"""`tune logs`: the last lines, what comes while a process works on the run, and how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunecli.cli import logs, main


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "log.txt").write_text("".join(f"step {i}\n" for i in range(100)) + "unfinished li")
    return tmp_path


@pytest.fixture
def worker(run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the command line of one that trains `run_dir`."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "-m", "tunecli.worker", str(run_dir.resolve())]
    )
    yield process
    process.kill()
    process.wait()


def end(run_dir: Path, state: str, exit_status: int) -> None:
    (run_dir / "status.json").write_text(json.dumps({"state": state, "step": 99, "exit_status": exit_status}))


def test_the_last_whole_lines(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    end(run_dir, "finished", 0)
    assert main(["logs", "-n", "2", str(run_dir)]) == 0
    assert capsys.readouterr().out.splitlines() == ["step 98", "step 99", "(finished after step 99)"]


def test_latest_is_a_run_too(run_dir: Path, tmp_path_factory: pytest.TempPathFactory, worker: object):
    latest = tmp_path_factory.mktemp("recipe") / "latest"
    latest.symlink_to(run_dir)
    assert logs._running(latest)


@pytest.mark.parametrize(
    ("state", "exit_status", "verdict"),
    [
        ("finished", 0, "(finished after step 99)"),
        ("interrupted", 143, "go on with: tune resume"),
        ("failed", 2, "(failed with exit status 2)"),
        ("running", 0, "ended without a word"),
    ],
)
def test_how_it_ended_is_said_and_is_the_exit_status(
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    exit_status: int,
    verdict: str,
):
    monkeypatch.setattr(logs, "PAUSE", 0)
    end(run_dir, state, exit_status)
    (run_dir / "console.txt").write_text("error: \x1b[31mno such row\n")
    assert main(["logs", "-f", str(run_dir)]) == (1 if state == "running" else exit_status)
    lines = capsys.readouterr().out.splitlines()
    assert verdict in lines[-1]
    assert (lines[-2] == "console.txt: error: \\x1b[31mno such row") == (state in ("failed", "running"))


def test_it_follows_until_the_process_ends(
    run_dir: Path,
    worker: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(logs, "PAUSE", 0.05)
    end(run_dir, "interrupted", 143)  # of an earlier start: a process that works on it counts for more

    def write() -> None:
        time.sleep(0.3)
        with (run_dir / "log.txt").open("a") as file:
            file.write("ne\nthe last\n")
        end(run_dir, "finished", 0)
        worker.kill()
        worker.wait()

    writing = threading.Thread(target=write)
    writing.start()
    assert main(["logs", "-f", "-n", "1", str(run_dir)]) == 0
    writing.join()
    assert capsys.readouterr().out.splitlines() == [
        "step 99",
        "unfinished line",
        "the last",
        "(finished after step 99)",
    ]


def test_only_run_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["logs", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
