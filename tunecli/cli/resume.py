"""Go on with a run from its newest complete checkpoint.

tune resume outputs/sft_lora_smollm2/latest
tune resume outputs/sft_lora_smollm2/latest train.max_steps=200     train for longer
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="the run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values to change from here on")
    parser.add_argument("--detach", action="store_true", help="run in the background: `tune logs -f`, `tune stop`")


def run(args: argparse.Namespace) -> int:
    from tunecli import launch

    return launch.resume(args.run_dir, args.overrides, detach=args.detach)
