"""Ask a run to save a checkpoint and end; `tune resume` goes on with it.

tune stop outputs/sft_lora_smollm2/latest
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="the run directory")


def run(args: argparse.Namespace) -> int:
    from tunecli import launch

    return launch.stop(args.run_dir)
