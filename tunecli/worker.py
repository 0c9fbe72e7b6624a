"""`python -m tunecli.worker RUN_DIR`: one rank of a run, started by `launch.py`."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tunecli.config.begun import discard
from tunecli.config.errors import TrainingStopped, UserError, print_error
from tunecli.config.paths import display
from tunecli.config.run import RunConfig
from tunecli.config.stage import LabelConfig
from tunecli.engine.quiet import no_foreign_bars


def main(run_dir: Path) -> int:
    from tunecli.config.compose import load_config

    config = load_config(run_dir / "config.yaml")
    alone = config.launch.num_processes == 1
    _quieten_libraries()
    if isinstance(config.stage, LabelConfig):
        return _label(config, run_dir, alone=alone)
    from tunecli import run

    retains = alone and bool(config.evaluation.retain)  # with several ranks the launcher sees to it
    try:
        if retains:
            from tunecli import retain

            retain.check(config)
        status = run.main(config, run_dir)
        if retains and status == 0:
            status = retain.main(run_dir)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print_error(error)
            if not (alone and error.exit_status == UserError.exit_status and discard(run_dir)):
                record = {"state": "failed", "exit_status": error.exit_status, "error": str(error).splitlines()[0]}
                (run_dir / "status.json").write_text(json.dumps(record))
        status = error.exit_status
        # Every rank comes here together; a status of 0 keeps the elastic agent from adding its own traceback.
        if isinstance(error, TrainingStopped) and not alone:
            return 0
        return status
    except KeyboardInterrupt:  # the second Ctrl-C
        status = _interrupted(run_dir, signal.SIGINT)
    return status if alone else 0


def _label(config: RunConfig, run_dir: Path, *, alone: bool) -> int:
    """Each process by itself: what one has done counts whatever becomes of the others."""
    from tunecli import labelling

    try:
        status = labelling.main(config, run_dir)
    except UserError as error:
        print_error(error)
        status = error.exit_status
        if not (alone and status == UserError.exit_status and discard(run_dir)):
            record = {"state": "failed", "exit_status": status, "error": str(error).splitlines()[0]}
            (run_dir / "status.json").write_text(json.dumps(record))
    except KeyboardInterrupt:
        status = _interrupted(run_dir, signal.SIGINT)
    return status if alone else 0  # the launcher reads status.json


def _quieten_libraries() -> None:
    """Progress bars belong to a terminal and one rank; these warnings are about what was chosen on purpose."""
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    if os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty():
        no_foreign_bars()


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """At a signal while torch and the like are imported: an exception would come up anywhere in them. Once there is
    something to save, `StopSignal` takes this place."""
    status = _interrupted(Path(sys.argv[1]), number)
    _leave(status if os.environ.get("WORLD_SIZE", "1") == "1" else 0)


def _interrupted(run_dir: Path, number: int) -> int:
    """Say and note down that the run ended without saving. Returns its exit status."""
    status = 128 + number
    if os.environ.get("RANK", "0") == "0":
        saved = (run_dir / "checkpoints").glob("step_*/manifest.json")
        step = max((int(manifest.parent.name.removeprefix("step_")) for manifest in saved), default=0)
        again = f"goes on after step {step}" if step else "starts it again"
        print(f"\nstopped, nothing was saved: tune resume {display(run_dir)} {again}", file=sys.stderr)
        (run_dir / "status.json").write_text(
            json.dumps({"state": "interrupted", "step": step, "exit_status": status})
        )
    return status


def _leave(status: int) -> NoReturn:
    """End this process at once.

    torch.distributed's own teardown waits, with the interpreter's lock held, for a thread that may need that lock to
    drop its last tensor: now and then it never ends. The system frees all that it would have freed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_at_once)
    if sys.platform != "win32":  # what came since `launch` blocked them comes now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    _leave(main(Path(sys.argv[1])))
