"""Write the report of a run again, or compare several runs, as one HTML page that needs nothing else.

tune report outputs/sft_lora_smollm2/latest             report.html in the run directory
tune report RUN RUN RUN --out comparison.html           curves of several runs in one plot, what differs, results
"""

from __future__ import annotations

import argparse
from pathlib import Path

COMPARISON = Path("comparison.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"report.html in the run directory, or {COMPARISON}")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")


def run(args: argparse.Namespace) -> int:
    from tunecli.report.page import write_comparison, write_report

    if len(args.runs) == 1:
        path = write_report(args.runs[0], args.out)
    else:
        path = args.out or COMPARISON
        write_comparison(args.runs, path)
    print(path)
    if args.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0
