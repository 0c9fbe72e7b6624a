"""Whether anything was trained in a run directory, and what becomes of one where nothing was."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from tunecli.config.errors import UserError
from tunecli.config.paths import display
from tunecli.config.run import RunConfig
from tunecli.config.run_lock import is_locked

TRAINED = ("metrics.jsonl", "checkpoints", "adapter", "model", "units.sqlite")
"""What only a run that has begun to train leaves behind."""
NEW = "TUNECLI_NEW_RUN"
"""Environment variable: the directory of the run that starts, if it was made for it, and its errors are shown."""


def has_begun(run_dir: Path) -> bool:
    return any((run_dir / name).exists() for name in TRAINED)


def discard(run_dir: Path) -> bool:
    """Remove a new run directory whose run was refused for what the user asked. Returns whether it did.

    It stays where it was there before, where a step was about to be taken (`outputs/RECIPE/latest` points at it then)
    and where it holds the only account of what happened.
    """
    if os.environ.get(NEW) != str(run_dir) or has_begun(run_dir) or (run_dir / "environment.json").exists():
        return False
    shutil.rmtree(run_dir)
    print("nothing was trained, so the run directory is removed again", file=sys.stderr, flush=True)
    return True


def no_result(run_dir: Path, config: RunConfig) -> UserError:
    """Why a run directory has nothing to load."""
    where = display(run_dir)
    if has_begun(run_dir) and config.train.max_steps == 0:
        fix = f"name the model itself, {config.model.path}"
        return UserError("trained nothing, as train.max_steps=0 asked", where=where, fix=fix)
    if has_begun(run_dir) or is_locked(run_dir):
        fix = f"tune logs {where} says how far it is; if it was stopped: tune resume {where}"
        return UserError("has no result yet", where=where, fix=fix)
    status = run_dir / "status.json"
    error = json.loads(status.read_text(encoding="utf-8")).get("error", "") if status.is_file() else ""
    return UserError(
        f"never trained anything: it ended before its first step{error and f' ({error})'}",
        where=where,
        fix=f"mend what ended it and start a new one with tune run; tune resume {where} starts this one again",
    )
