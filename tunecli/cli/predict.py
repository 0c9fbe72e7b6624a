"""What a run, an adapter or a model says of every row of a file that has no labels.

tune predict outputs/smoke_classify/latest texts.jsonl                 one JSON object a line, on standard output
tune predict RUN texts.csv --out predictions.jsonl                     into a file
tune predict RUN questions.jsonl evaluation.max_new_tokens=100         a language model answers
tune predict MODEL texts.txt                                           a model of somebody else's

Rows are read as in training: columns text (and text_pair) for classifiers, tokens or text for taggers, messages,
prompt, instruction or text for language models. Labels and answers that rows have, blank ones too, are passed over.
The predictions stand in the order of the rows; a row that cannot be used has an `error`, is reported, and makes the
status 2.
"""

from __future__ import annotations

import argparse
import sys
from io import TextIOWrapper
from pathlib import Path

from tunecli.cli.words import refuse_taken_file
from tunecli.config.data_files import is_data_file
from tunecli.config.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="RUN FILE key=value", help="run or model, rows, and settings")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write; default: standard output")
    parser.add_argument("--force", action="store_true", help="replace a FILE that is there already")
    parser.add_argument("--task", metavar="NAME", help="which task the rows are of, where the model has several")


def run(args: argparse.Namespace) -> int:
    from tunecli.cli.eval import split_words

    paths, overrides = split_words(args.words)
    if len(paths) != 2:
        raise _not_two(paths)
    if args.out is not None:
        refuse_taken_file(args.out, force=args.force)
    from tunecli.engine.hub_name import refuse_missing
    from tunecli.engine.quiet import no_foreign_bars

    refuse_missing(paths[0])
    no_foreign_bars()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    from tunecli.scoring.files import as_lines, made, written
    from tunecli.scoring.predicting import check, plan, predict
    from tunecli.scoring.terminal import progress

    planned = plan(paths[0], paths[1], overrides, args.task)
    bad = []
    with progress(enabled=True) as proceed:
        found = predict(planned, lambda done: proceed("predicting", done))

        def lines():
            for record in found:
                if "error" in record:
                    bad.append(record)
                yield from as_lines([record])

        if args.out is None:
            sys.stdout.writelines(lines())
        else:
            made(args.out.parent)
            with written(args.out) as file:
                file.writelines(lines())
    check(bad, planned.num_rows)
    return 0


def _not_two(paths: list[str]) -> UserError:
    if len(paths) > 2:
        return UserError(f"{len(paths)} paths are named", fix="tune predict RUN FILE: one of each")
    if len(paths) == 1 and is_data_file(paths[0]):
        return UserError("no run or model is named", fix=f"tune predict RUN {paths[0]}")
    fix = f"tune predict {paths[0] if paths else 'RUN'} FILE: one with a row for each text, such as texts.jsonl"
    return UserError("no file with rows is named", fix=fix)
