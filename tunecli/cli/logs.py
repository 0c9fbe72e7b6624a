"""What a run printed.

tune logs outputs/sft_lora_smollm2/latest            its last lines
tune logs -f outputs/sft_lora_smollm2/latest         and what comes, until the run ends; the exit status is the run's
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunecli.config.errors import UserError

PAUSE = 0.5
"""Seconds between two looks at the file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="the run directory")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    parser.add_argument("-n", "--lines", type=int, default=50, help="so many of the last lines (default: 50)")


def run(args: argparse.Namespace) -> int:
    run_dir: Path = args.run_dir
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir} is not a run directory", fix="name one that holds a config.yaml")
    log = run_dir / "log.txt"
    written = _whole_lines(log)
    _show(_last(written, args.lines))
    if args.follow:
        _show(_following(log, len(written), run_dir))
    running, status = _running(run_dir), _status(run_dir)
    if not running and status.get("state") not in ("finished", "interrupted"):
        _show(b"console.txt: " + line for line in _last(_whole_lines(run_dir / "console.txt"), args.lines))
    print(_verdict(run_dir, status, running))
    if not args.follow:
        return 0
    return 1 if status.get("state") == "running" else int(status.get("exit_status", 1))


def _following(log: Path, position: int, run_dir: Path) -> Iterator[bytes]:
    """Whole lines as they come, until no process works on the run any more."""
    ended = 0
    while ended < 3:  # between preparing and training no process can be seen for a moment
        ended = 0 if _running(run_dir) else ended + 1
        written = _whole_lines(log, position)
        position += len(written)
        yield from written.splitlines()
        time.sleep(PAUSE)


def _verdict(run_dir: Path, status: dict[str, Any], running: bool) -> str:
    if running:
        return "(still running)"
    go_on = f"go on with: tune resume {run_dir}"
    match status.get("state"):
        case "finished":
            return f"(finished after step {status['step']})"
        case "interrupted":
            return f"(stopped after step {status['step']}; {go_on})"
        case "failed":
            return f"(failed with exit status {status['exit_status']})"
        case _:
            return f"(ended without a word, or runs on another machine; {go_on})"


def _running(run_dir: Path) -> bool:
    from tunecli import launch

    return bool(launch.processes(run_dir))


def _status(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _whole_lines(path: Path, position: int = 0) -> bytes:
    """From `position` on, without a last line that is still being written."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(position)
        content = file.read()
    return content[: content.rfind(b"\n") + 1]


def _last(content: bytes, number: int) -> list[bytes]:
    return content.splitlines()[-number:] if number > 0 else []


def _show(lines: Iterable[bytes]) -> None:
    from tunecli.engine.text import harmless

    for line in lines:
        print(harmless(line.decode(errors="replace")), flush=True)
