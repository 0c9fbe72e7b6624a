"""Show what differs between two runs: configuration, data, versions, hardware, results, speed.

tune diff outputs/sft_lora_smollm2/2026-01-05_10-00-00 outputs/sft_lora_smollm2/latest
"""

from __future__ import annotations

import argparse
import json
import sys
from io import TextIOWrapper
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    from tunecli.report.difference import compare, labels
    from tunecli.report.run_files import read_run

    runs = [read_run(path) for path in args.runs]
    names, sections = labels(runs), compare(runs)
    if args.json:
        differing = {section.title: section.differing for section in sections}
        equal = {section.title: section.equal for section in sections}
        print(json.dumps({"runs": [str(run.path) for run in runs], **differing, "equal": equal}, indent=2))
        return 0
    from tunecli.report.terminal import show_differences

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # encodings other than UTF-8
    show_differences(names, sections)
    return 0
