"""What a person sees of a run: a live line in a terminal, plain lines elsewhere, and the same lines in `log.txt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text


class Display:
    """Prints on the main process only; other ranks get `Display(enabled=False)`, which does nothing."""

    def __init__(self, *, enabled: bool = True, log_file: Path | None = None) -> None:
        self.enabled = enabled
        self.console = Console(highlight=False, soft_wrap=True)
        self.log_file = log_file if enabled else None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def note(self, text: str, style: str = "") -> None:
        """A line that stays."""
        if not self.enabled:
            return
        self.console.print(Text(text, style=style))
        self._to_file(text)

    def start(self, *, step: int, num_steps: int) -> None:
        if not self.enabled or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=self.console,
        )
        self._task = self._progress.add_task("starting", total=num_steps, completed=step)
        self._progress.start()

    def training(self, record: Mapping[str, Any], num_steps: int) -> None:
        """One logged training step."""
        if not self.enabled:
            return
        line = _short(record)
        plain = f"step {record['step']}/{num_steps}  {line}{_eta(record, num_steps)}"
        if self._progress is None or self._task is None:
            self.note(plain)
            return
        self._progress.update(self._task, completed=record["step"], description=f"{line}{_eta(record, num_steps)}")
        self._to_file(plain)

    def evaluating(self, done: float) -> None:
        """How far a running evaluation is, in the live line."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"evaluating {done:.0%}")

    def evaluation(self, record: Mapping[str, Any]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in record.items() if name != "step")
        self.note(f"step {record['step']}  {shown}", style="cyan")

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _to_file(self, text: str) -> None:
        if self.log_file is not None:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def _short(record: Mapping[str, Any]) -> str:
    return (
        f"loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}  norm {record['grad_norm']:.2f}  "
        f"{record['tokens_per_second']:.0f} tok/s  {record['memory_peak_bytes'] / 1e9:.1f} GB"
    )


def _eta(record: Mapping[str, Any], num_steps: int) -> str:
    left = (num_steps - record["step"]) * record["seconds_per_step"]
    minutes, seconds = divmod(int(left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  eta {hours}:{minutes:02d}:{seconds:02d}"
