"""The `launch` group: on what the run is started."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Strategy(Enum):
    """`auto`: all visible GPUs, else one CPU process. `cpu`: CPU processes (gloo). `ddp`: one process per GPU."""

    auto = "auto"
    cpu = "cpu"
    ddp = "ddp"


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    strategy: Strategy = Strategy.auto
    num_processes: int | None = None
    """Empty: one per visible GPU, or one on a CPU."""
