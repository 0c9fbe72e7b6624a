"""One process at a time trains in a run directory. The kernel lets go of the lock however that process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from tunecli.config.errors import UserError


def lock_run(run_dir: Path) -> TextIO:
    """Take the lock; it is held until the returned file is closed or the process ends.

    Raises:
        UserError: another process trains there.
    """
    file = (run_dir / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise UserError(
            f"process {file.read().strip() or 'of another user'} is training in {run_dir}",
            fix="wait for it or stop it; a run of its own goes into another output_dir",
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def is_locked(run_dir: Path) -> bool:
    """Whether a process trains there."""
    try:
        with (run_dir / ".lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
