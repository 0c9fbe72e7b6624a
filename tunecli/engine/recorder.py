"""What a run writes while it trains: `metrics.jsonl`, console lines, checkpoints, `status.json`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from tunecli.engine.checkpoint import write_atomically
from tunecli.engine.console import Display


class Recorder:
    """Only the main process writes; on other ranks every method is a no-op."""

    def __init__(self, run_dir: Path, display: Display, *, num_steps: int) -> None:
        self.run_dir = run_dir
        self.display = display
        self.num_steps = num_steps

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def training(self, record: dict[str, Any]) -> None:
        self._append(record)
        self.display.training(record, self.num_steps)

    def evaluation(self, record: dict[str, Any]) -> None:
        self._append(record)
        self.display.evaluation(record)

    def status(self, state: str, *, step: int, exit_status: int) -> None:
        """What became of the run, for the launcher and for `tune resume`."""
        if self.display.enabled:
            record = {"state": state, "step": step, "exit_status": exit_status}
            write_atomically(self.run_dir / "status.json", json.dumps(record))

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that are about to be trained again, so that no step stands there twice."""
        path = self.run_dir / "metrics.jsonl"
        if not self.display.enabled or not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        write_atomically(path, "".join(line + "\n" for line in kept))

    def _append(self, record: dict[str, Any]) -> None:
        if self.display.enabled:
            with (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
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
