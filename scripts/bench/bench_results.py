"""What the tables of many short runs share: runs in processes of their own, a file of finished runs, and text."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Record = dict[str, Any]
"""One run: what names it, and what was measured."""


def call(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stdout.decode(errors='replace')[-1500:]}")


@dataclass(slots=True)
class Results:
    """The file of finished runs; several threads add to it."""

    path: Path
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> list[Record]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def find(self, key: Record) -> Record | None:
        return next((record for record in self.read() if key.items() <= record.items()), None)

    def add(self, record: Record) -> None:
        with self.lock:
            whole = [json.dumps(known) + "\n" for known in (*self.read(), record)]
            new = self.path.with_suffix(".new")
            new.write_text("".join(whole), encoding="utf-8")
            new.replace(self.path)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def percent(values: Sequence[float]) -> str:
    """Mean, standard deviation, least and most."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    spread, ends = f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}", (min(values), max(values))
    return f"{spread} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def as_text(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
