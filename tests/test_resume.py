"""Killed and resumed = never interrupted, bit for bit on a CPU, through the real command."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = 9
# 49 examples by 12 are not whole epochs, so kills and saves fall into the middle of one; dropout uses randomness.
COMMON = [f"train.max_steps={STEPS}", "train.global_batch_size=12", "train.save_every=2", "train.keep_last=3"]
DROPOUT = "peft.lora.lora_dropout=0.2"
TWO = ["launch=cpu", "launch.num_processes=2"]
ADALORA = [f"peft.adalora.{value}" for value in ("init_r=6", "target_r=3", "deltaT=2", "tinit=1", "tfinal=3")]
ADALORA += ["peft.adalora.lora_dropout=0.2"]
MLM_STREAM = ["data.streaming=true", "data.shuffle_buffer=10", "data.validation=null", "train.eval_every=null"]
CASES = {
    "full": ["recipe=smoke_sft_full", "train.pull_to_start=50"],
    "lora": ["recipe=smoke_sft_lora", DROPOUT],
    "4bit-lora": ["recipe=smoke_qlora", DROPOUT, "train.optimizer=paged_adamw_8bit"],
    "full-two-processes": ["recipe=smoke_sft_full", *TWO],
    "adalora-two-processes": ["recipe=smoke_sft_lora", "peft=adalora", *ADALORA, *TWO],
    "classify-two-processes": ["recipe=smoke_classify", "peft=[lora,p_tuning_v2]", DROPOUT, *TWO],
    "reward-two-processes": ["recipe=smoke_reward", DROPOUT, *TWO],
    "masked-lm-streamed-two-processes": ["recipe=smoke_mlm", *MLM_STREAM, *TWO],
}
"""More of them, in one process, are in test_methods.py."""

pytestmark = pytest.mark.slow


def tune(*words: str) -> list[str]:
    return [sys.executable, "-m", "tunecli", *words]


def finish(*words: str) -> None:
    done = subprocess.run(tune(*words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def steps_logged(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"learning_rate"') if path.exists() else 0


def kill_at(run_dir: Path, step: int, number: int, *words: str) -> int:
    """Start a run, send it a signal once `step` is logged, and wait for its end."""
    process = subprocess.Popen(tune(*words), start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while steps_logged(run_dir) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, f"ended with {process.returncode} before step {step}"
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)  # with accelerate in between the ranks are in a session of their own
        for pid in worker_pids(run_dir):
            os.kill(pid, number)
        while worker_pids(run_dir) and time.monotonic() < deadline:  # a busy machine takes its time to end them
            time.sleep(0.05)
    else:
        process.send_signal(number)
    return process.wait(timeout=100)


def worker_pids(run_dir: Path) -> list[int]:
    found = subprocess.run(["pgrep", "-f", str(run_dir)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def result(run_dir: Path) -> dict[str, torch.Tensor]:
    files = sorted([*run_dir.glob("adapter/*/*.safetensors"), *run_dir.glob("model/*.safetensors")])
    assert files
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def losses(run_dir: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, case: str) -> None:
    words = [*CASES[case], *COMMON]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish("run", *words, f"output_dir={whole}")
    step = random.SystemRandom().randint(1, STEPS - 1)
    kill_at(killed, step, signal.SIGKILL, "run", *words, f"output_dir={killed}")
    assert not (killed / "adapter").exists() and not (killed / "model").exists()
    finish("resume", str(killed))
    one, other = result(whole), result(killed)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), f"killed after step {step}: {name}"
    assert losses(whole) == losses(killed)
    assert [step for step, _ in losses(killed)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(tmp_path: Path, processes: int, number: int) -> None:
    words = ["recipe=smoke_sft_lora", "train.max_steps=100000", "train.eval_every=null", "train.save_every=null"]
    words += ["launch=cpu", f"launch.num_processes={processes}", f"output_dir={tmp_path / 'run'}"]
    run_dir = tmp_path / "run"
    status = kill_at(run_dir, 3, number, "run", *words)
    assert status == 128 + (signal.SIGTERM if processes == 1 and number == signal.SIGTERM else number)
    record = json.loads((run_dir / "status.json").read_text())
    assert record["state"] == "interrupted"
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert checkpoint.name == f"step_{record['step']:08d}"
    finish("resume", str(run_dir), f"train.max_steps={record['step'] + 2}")
    assert steps_logged(run_dir) == record["step"] + 2


def test_a_finished_run_trains_further_when_asked(tmp_path: Path) -> None:
    """10 steps and 5 more = 15 at once, where the schedule does not depend on the number of steps."""
    words = ["recipe=smoke_sft_lora", "train.lr_scheduler=constant"]
    finish("run", *words, "train.max_steps=4", f"output_dir={tmp_path / 'more'}")
    refused = subprocess.run(tune("resume", str(tmp_path / "more")), capture_output=True, text=True)
    assert refused.returncode == 2 and "train.max_steps=" in refused.stderr
    finish("resume", str(tmp_path / "more"), "train.max_steps=7")
    finish("run", *words, "train.max_steps=7", f"output_dir={tmp_path / 'once'}")
    one, other = result(tmp_path / "more"), result(tmp_path / "once")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.skipif(sys.platform != "linux", reason="the ranks learn of it through a Linux call")
def test_a_launcher_that_is_killed_outright_leaves_no_rank_behind(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = ["recipe=smoke_sft_lora", "train.max_steps=100000", "train.eval_every=null", "train.save_every=null"]
    words += ["launch=cpu", "launch.num_processes=2", f"output_dir={run_dir}"]
    process = subprocess.Popen(tune("run", *words), start_new_session=True, stdout=subprocess.DEVNULL)
    while steps_logged(run_dir) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while worker_pids(run_dir) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not worker_pids(run_dir)
    assert json.loads((run_dir / "status.json").read_text())["state"] == "interrupted"


def test_a_run_is_resumed_on_another_number_of_processes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    finish("run", "recipe=smoke_sft_lora", "launch=cpu", "train.max_steps=3", f"output_dir={run_dir}")
    finish("resume", str(run_dir), "launch.num_processes=2", "train.max_steps=5")
    assert [step for step, _ in losses(run_dir)] == [1, 2, 3, 4, 5]
