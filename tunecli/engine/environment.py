"""What a run ran on: versions, hardware, commit. Goes into `environment.json` and bug reports."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *("tunecli", "torch", "transformers", "datasets", "peft", "bitsandbytes", "accelerate"),
    *("hydra-core", "omegaconf", "rich", "tokenizers", "safetensors", "pyarrow", "numpy"),
)


def describe_environment() -> dict[str, Any]:
    """JSON-able; keys `python`, `platform`, `packages`, `hardware`, `git_commit`."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": _hardware(),
        "git_commit": _git_commit(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _hardware() -> dict[str, Any]:
    import psutil
    import torch

    from tunecli.engine.precision import cpu_computes_bf16

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "cpu_computes_bf16": cpu_computes_bf16(),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "cuda": torch.version.cuda,
    }


def _git_commit() -> str | None:
    """Of the folder that the command was started in; None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
