"""`python -m tunecli.worker RUN_DIR`: one rank of a run, started by `launch.py`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from tunecli.config.compose import load_config
from tunecli.config.errors import TrainingStopped, UserError, print_error
from tunecli.engine.quiet import no_foreign_bars


def main(run_dir: Path) -> int:
    config = load_config(run_dir / "config.yaml")
    alone = config.launch.num_processes == 1
    _quieten_libraries()
    from tunecli import run

    try:
        status = run.main(config, run_dir)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print_error(error)
            (run_dir / "status.json").write_text(json.dumps({"state": "failed", "exit_status": error.exit_status}))
        status = error.exit_status
        # Every rank comes here together; a status of 0 keeps the elastic agent from adding its own traceback.
        if isinstance(error, TrainingStopped) and not alone:
            return 0
        return status
    return status if alone else 0


def _quieten_libraries() -> None:
    """Progress bars belong to a terminal and one rank; these warnings are about what was chosen on purpose."""
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
    if os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty():
        no_foreign_bars()


def _leave(status: int) -> NoReturn:
    """End this process at once.

    torch.distributed's own teardown waits, with the interpreter's lock held, for a thread that may need that lock to
    drop its last tensor: now and then it never ends. The system frees all that it would have freed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main(Path(sys.argv[1])))
