"""What a run writes while it trains: `metrics.jsonl`, `samples.jsonl`, `answers.jsonl`, console lines, `status.json`,
and what trackers keep."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunecli.engine.checkpoint import write_atomically
from tunecli.engine.console import Display
from tunecli.engine.trackers import Trackers


class Recorder:
    """Only the main process writes; on other ranks every method is a no-op."""

    def __init__(self, run_dir: Path, display: Display, *, num_steps: int, trackers: Trackers | None = None) -> None:
        self.run_dir = run_dir
        self.display = display
        self.num_steps = num_steps
        self.trackers = trackers or Trackers((), run_dir, {}, display)

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def best(self) -> Path:
        """Parameters of the best evaluation, where `train.keep_best` keeps them."""
        return self.run_dir / "best"

    def training(self, record: dict[str, Any]) -> None:
        self._append("metrics.jsonl", record)
        self.display.training(record, self.num_steps)
        self.trackers.log(record, record["step"])

    def evaluation(self, record: dict[str, Any], right: Mapping[str, list[bool]]) -> None:
        """`right`: metric -> whether each validation example is right, for answers.jsonl."""
        if right:
            answers = {name: [int(each) for each in values] for name, values in right.items()}
            self._append("answers.jsonl", {"step": record["step"], **answers})
        self._append("metrics.jsonl", record)
        self.display.evaluation(record, self.num_steps)
        self.trackers.log(record, record["step"])

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """What the model says after `step`: each with "prompt", "answer" and, where one is right, "expected"; of
        answers that were judged "score" and "kl"."""
        for sample in samples:
            self._append("samples.jsonl", {"step": step, **sample})
        self.display.samples(step, self.num_steps, samples)
        self.trackers.samples(samples, step)

    def status(self, state: str, *, step: int, exit_status: int) -> None:
        """What became of the run, for the launcher and for `tune resume`."""
        if self.display.enabled:
            record = {"state": state, "step": step, "exit_status": exit_status}
            write_atomically(self.run_dir / "status.json", json.dumps(record))

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that are about to be trained again, so that no step stands there twice."""
        for name in ("metrics.jsonl", "answers.jsonl", "samples.jsonl"):
            path = self.run_dir / name
            if self.display.enabled and path.exists():
                kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
                write_atomically(path, "".join(line + "\n" for line in kept))

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if self.display.enabled:
            with (self.run_dir / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    """A line that a kill cut short counts as after everything."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def peak_memory_bytes() -> int:
    """Highest memory so far: of the allocator where CUDA is in use, else of this process (resident set)."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
