"""A detached run outlives the terminal it was started from, and `tune stop` ends it after a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunecli.cli import main
from tunecli.launch import processes

ENDLESS = ["recipe=smoke_sft_lora", "train.max_steps=100000", "train.eval_every=null", "train.save_every=null"]


def tune(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tunecli", *words], capture_output=True, text=True, timeout=200)


def until_trained(run_dir: Path) -> None:
    deadline = time.monotonic() + 100
    while not (run_dir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (run_dir / "metrics.jsonl").exists(), (run_dir / "console.txt").read_text()


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_detached_run_is_stopped_with_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int):
    run_dir = tmp_path / "smoke_sft_lora" / "run"
    launch = ["launch=cpu", f"launch.num_processes={number}", f"output_dir={run_dir}"]
    started = tune("run", *ENDLESS, *launch, "--detach")
    assert started.returncode == 0 and f"tune stop {run_dir}" in started.stdout
    assert (tmp_path / "smoke_sft_lora" / "latest").resolve() == run_dir.resolve()
    until_trained(run_dir)
    (first, *_) = processes(run_dir)
    assert os.getsid(first.pid) != os.getsid(0) and first.terminal() is None
    assert main(["logs", str(run_dir)]) == 0 and "(still running)" in capsys.readouterr().out
    assert main(["stop", str(run_dir)]) == 0
    record = json.loads((run_dir / "status.json").read_text())
    assert record["state"] == "interrupted"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step_{record['step']:08d}"]
    assert "\x1b" not in (run_dir / "console.txt").read_text()
    assert f"tune resume {run_dir}" in capsys.readouterr().out
    assert main(["stop", str(run_dir)]) == 2


def test_a_mistake_is_shown_before_it_detaches(tmp_path: Path):
    done = tune("run", *ENDLESS, f"output_dir={tmp_path / 'run'}", "train.trackers=[tensorbord]", "--detach")
    assert done.returncode == 2 and "did you mean tensorboard?" in done.stderr
    assert not (tmp_path / "run").exists()
