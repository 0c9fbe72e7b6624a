"""Try a judge on the rows of a file: which of two answers is better, or how good one is.

tune judge pairs.jsonl judge=local judge.path=RUN                      pairs (chosen, rejected): does it agree?
tune judge pairs.jsonl judge=smollm2 judge.template=sentiment          asked in other words
tune judge pairs.jsonl judge=openai judge.model=NAME judge.base_url=http://localhost:8000/v1
tune judge texts.jsonl judge=local judge.path=RUN judge.mode=score     one answer each; with scores: do they agree?

`tune ls judge` lists the judges. What was judged once is kept and never asked again. Of pairs the share of verdicts
that agree with the file, Cohen's kappa, the position bias, ties and self-consistency are told, each with its 95 %
interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from io import TextIOWrapper
from pathlib import Path

from tunecli.cli.words import refuse_taken_file
from tunecli.config.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="FILE judge=NAME key=value", help="rows, and who judges them")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write what was said of each row into (JSON)"
    )
    parser.add_argument("--force", action="store_true", help="replace a FILE that is there already")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(args: argparse.Namespace) -> int:
    from tunecli.cli.eval import split_words

    paths, overrides = split_words(args.words)
    if len(paths) != 1:
        what = f"{len(paths)} files are named" if paths else "no file with rows is named"
        raise UserError(what, fix="tune judge FILE judge=NAME: one, such as pairs.jsonl")
    if args.out is not None:
        refuse_taken_file(args.out, force=args.force)
    from tunecli.config.judged import judged

    config = judged(paths[0], overrides)
    from tunecli.engine.quiet import no_foreign_bars

    no_foreign_bars()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    from tunecli.judging.terminal import progress, show
    from tunecli.judging.trial import try_judge

    with progress("judging", enabled=not args.json) as proceed:
        trial = try_judge(config, proceed)
    if args.out is not None:
        from tunecli.engine.checkpoint import write_atomically

        args.out.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in trial.records)
        write_atomically(args.out, "".join(lines))
    if args.json:
        print(json.dumps(trial.as_json(), indent=2, ensure_ascii=False))
    else:
        show(trial)
    return 0
