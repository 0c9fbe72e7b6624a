"""`tune run` against TRL's SFTTrainer: LoRA of SmolLM2-135M-Instruct on a CPU, same model, rows and batch size.

Real tokens per second: tokens that are not padding, over the wall time of whole optimizer steps (making the batch,
forward, backward, optimizer); the first steps of every contestant are not counted. Contestants alternate A B C A B C,
so that a machine that drifts slows all of them.

    bash scripts/bench/setup_trl.sh                     # once: TRL in .venv-bench
    .venv/bin/python scripts/bench/sft_vs_trl.py --rounds 3 --steps 10 --out result.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from instruction_data import write_rows

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "assets" / "models" / "SmolLM2-135M-Instruct"
TRL_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
NUM_ROWS = 400
OURS = "tunecli"


@dataclass(frozen=True, slots=True)
class Job:
    """What one run of a contestant is asked to do."""

    data: Path
    run_dir: Path
    steps: int
    seed: int

    @property
    def metrics(self) -> Path:
        return self.run_dir / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.run_dir.with_suffix(".log")

    @property
    def cache(self) -> Path:
        return self.run_dir.with_suffix(".cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one run. "Counted" leaves the warm-up steps out."""

    contestant: str
    round: int
    tokens_per_second: float
    """real tokens of the counted steps over their wall time"""
    tokens_per_step: float
    seconds_per_step: float
    memory_peak_bytes: float
    """highest resident memory of the process up to the end of its last step"""
    first_step_at: float
    """seconds from the start of the process to the start of its first step"""
    first_step_seconds: float
    wall_seconds: float
    """of the whole process, saving included"""
    cores_used: float
    """on average, over the whole process"""
    cores_used_by_others: float
    """by everything else on the machine in that time; a run that had to share says little"""
    load: float
    """the machine's 1-minute load average before the start"""
    losses: list[float]


def tunecli_command(job: Job) -> list[str]:
    settings = [
        *("recipe=sft_lora_smollm2", "launch=cpu", "data=file", f"model.path={MODEL}", f"data.path={job.data}"),
        *("data.max_length=512", "train.global_batch_size=8", f"train.max_steps={job.steps}", f"seed={job.seed}"),
        *("train.warmup_steps=0", "train.eval_every=null", "train.save_every=null", f"output_dir={job.run_dir}"),
    ]
    return [sys.executable, "-m", "tunecli", "run", *settings]


def trl_command(tuning: str) -> Callable[[Job], list[str]]:
    def command(job: Job) -> list[str]:
        script = Path(__file__).with_name("trl_sft.py")
        places = [str(MODEL), str(job.data), str(job.run_dir)]
        return [str(TRL_PYTHON), str(script), tuning, *places, f"--steps={job.steps}", f"--seed={job.seed}"]

    return command


CONTESTANTS: dict[str, Callable[[Job], list[str]]] = {
    OURS: tunecli_command,
    "trl_shipped": trl_command("shipped"),
    "trl_tuned": trl_command("tuned"),
    "trl_tuned_8x1": trl_command("tuned_8x1"),
    "trl_tuned_1x8": trl_command("tuned_1x8"),
}


DEFAULT_OPPONENTS = ["trl_shipped", "trl_tuned"]


@dataclass(frozen=True, slots=True)
class Process:
    """How a process went; seconds."""

    first_line_at: float
    """until the first line of metrics.jsonl, which is the end of the first step"""
    wall: float
    cpu: float
    others_cpu: float


def run(name: str, number: int, job: Job, warmup: int) -> Result:
    """One run of a contestant in round `number`. Ends the script if it fails."""
    for folder in (job.run_dir, job.cache):
        shutil.rmtree(folder, ignore_errors=True)
    load = os.getloadavg()[0]
    process = watch(CONTESTANTS[name](job), job)
    steps = [line for line in map(json.loads, job.metrics.read_text().splitlines()) if "loss" in line]
    first_step_seconds = steps[0]["seconds_per_step"]
    return Result(
        contestant=name,
        round=number,
        **counted(steps, warmup),
        first_step_at=process.first_line_at - first_step_seconds,
        first_step_seconds=first_step_seconds,
        wall_seconds=process.wall,
        cores_used=process.cpu / process.wall,
        cores_used_by_others=process.others_cpu / process.wall,
        load=load,
        losses=[step["loss"] for step in steps],
    )


def watch(command: list[str], job: Job) -> Process:
    started, busy, first_line_at = time.monotonic(), busy_seconds(), 0.0
    with job.log.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(job.cache), stdout=log, stderr=log)
        while not (finished := os.wait4(process.pid, os.WNOHANG))[0]:
            if not first_line_at and job.metrics.exists():
                first_line_at = time.monotonic() - started
            time.sleep(0.05)
    _, status, usage = finished
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first_line_at:
        sys.exit(f"ended with status {process.returncode}: {shlex.join(command)}\n{job.log.read_text()[-3000:]}")
    wall, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    return Process(first_line_at, wall, cpu, others_cpu=busy_seconds() - busy - cpu)


def busy_seconds() -> float:
    """Of all cores since the machine started, idle and waiting time left out."""
    user, nice, system, _, _, irq, soft_irq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, soft_irq))) / os.sysconf("SC_CLK_TCK")


def counted(steps: list[dict[str, float]], warmup: int) -> dict[str, float]:
    """Speed and memory from the training lines of a `metrics.jsonl` that has one for each step."""
    after = steps[warmup:]
    tokens = steps[-1]["tokens"] - (steps[warmup - 1]["tokens"] if warmup else 0)
    seconds = sum(line["seconds_per_step"] for line in after)
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / len(after),
        "seconds_per_step": seconds / len(after),
        "memory_peak_bytes": steps[-1]["memory_peak_bytes"],
    }


def environment(cache: Path) -> dict[str, str]:
    """No GPU, no network, each library's own number of threads, and a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    caches = {"TUNECLI_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache)}
    return kept | caches | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


COLUMNS: dict[str, Callable[[Result], str]] = {
    "round": lambda run: str(run.round),
    "   contestant": lambda run: run.contestant,
    "real tok/s": lambda run: f"{run.tokens_per_second:.1f}",
    "peak GB": lambda run: f"{run.memory_peak_bytes / 1e9:.2f}",
    "s/step": lambda run: f"{run.seconds_per_step:.2f}",
    "tok/step": lambda run: f"{run.tokens_per_step:.0f}",
    "start-up s": lambda run: f"{run.first_step_at:.1f}",
    "first step s": lambda run: f"{run.first_step_seconds:.1f}",
    "whole s": lambda run: f"{run.wall_seconds:.0f}",
    "cores": lambda run: f"{run.cores_used:.2f}",
    "others": lambda run: f"{run.cores_used_by_others:.2f}",
    "load": lambda run: f"{run.load:.2f}",
}


def line_of(result: Result) -> str:
    return "  ".join(cell(result).rjust(len(title)) for title, cell in COLUMNS.items())


def ratios(results: list[Result], contestant: str) -> list[float]:
    """Our tokens per second over the contestant's, for each round."""
    speed = {(result.contestant, result.round): result.tokens_per_second for result in results}
    return [speed[OURS, number] / speed[contestant, number] for name, number in speed if name == contestant]


def summary(results: list[Result]) -> str:
    lines = ["", "median        real tok/s  peak GB  start-up s  tunecli is faster by, each round"]
    for name in dict.fromkeys(result.contestant for result in results):
        mine = [result for result in results if result.contestant == name]
        speed, memory, start = (
            median(getattr(result, field) for result in mine)
            for field in ("tokens_per_second", "memory_peak_bytes", "first_step_at")
        )
        faster = "" if name == OURS else " ".join(f"{ratio:.2f}x" for ratio in ratios(results, name))
        lines.append(f"{name:<14}{speed:>10.1f}{memory / 1e9:>9.2f}{start:>12.1f}  {faster}")
    return "\n".join(lines)


def machine() -> dict[str, str | int | None]:
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ", 1)[1] for line in cpu_info if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *packages], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def check_versions() -> dict[str, str]:
    """Of what both environments use. Ends the script if they differ."""
    shared = ("torch", "transformers", "peft", "accelerate")
    ours, theirs = versions(sys.executable, shared), versions(str(TRL_PYTHON), (*shared, "trl"))
    if any(ours[name] != theirs[name] for name in shared):
        sys.exit(f"different versions: here {ours}, .venv-bench {theirs}\n  fix: bash scripts/bench/setup_trl.sh")
    return theirs


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare LoRA fine-tuning on a CPU with TRL's SFTTrainer.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="counted optimizer steps of each run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those, not counted")
    parser.add_argument(
        "--against", nargs="+", choices=[name for name in CONTESTANTS if name != OURS], default=DEFAULT_OPPONENTS
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench" / "sft_vs_trl.json")
    arguments = parser.parse_args()
    for path, fix in ((MODEL, "python scripts/fetch_assets.py"), (TRL_PYTHON, "bash scripts/bench/setup_trl.sh")):
        if not path.exists():
            sys.exit(f"{path} is missing\n  fix: {fix}")

    setting = machine() | check_versions() | {"steps": arguments.steps, "warmup": arguments.warmup}
    work = ROOT / "outputs" / "bench"
    work.mkdir(parents=True, exist_ok=True)
    data = work / "chats.jsonl"
    write_rows(data, num_rows=NUM_ROWS, seed=arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    print("  ".join(f"{name}={value}" for name, value in setting.items()), "  ".join(COLUMNS), sep="\n\n", flush=True)
    results: list[Result] = []
    for number in range(1, arguments.rounds + 1):
        for name in (OURS, *arguments.against):
            job = Job(data, work / name, arguments.warmup + arguments.steps, arguments.seed)
            results.append(run(name, number, job, arguments.warmup))
            print(line_of(results[-1]), flush=True)
            record = {"setting": setting, "results": [asdict(result) for result in results]}
            arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(summary(results))
    print(f"\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
