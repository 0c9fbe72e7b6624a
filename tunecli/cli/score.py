"""Score answers with a reward model, or with any classifier of one label.

tune score outputs/smoke_reward/latest                       its own validation data
tune score RUN data.path=answers.jsonl --out scores.jsonl    a score for each row of a file
tune score RUN data=movie_pairs                              both answers of each pair, and which is preferred
tune score MODEL data.path=answers.jsonl                     a model of somebody else's
tune score RUN --interactive                                 asks for a prompt and an answer, and says the score

A row is a completion of a prompt (prompt, completion), a conversation (messages) whose last answer is scored, a text,
or a pair (chosen, rejected). Of pairs it is counted how often the chosen answer scores higher.
"""

from __future__ import annotations

import argparse
import sys
from io import TextIOWrapper
from pathlib import Path

from tunecli.cli.words import refuse_taken_file
from tunecli.config.errors import UserError

SHOWN = 20
"""Rows in the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="RUN key=value", help="run or model, and the data")
    parser.add_argument("--interactive", action="store_true", help="score what is typed, until an empty line")
    parser.add_argument("--raw", action="store_true", help="with --interactive: no chat template")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a line of JSON for each row")
    parser.add_argument("--force", action="store_true", help="replace a FILE that is there already")
    parser.add_argument("--json", action="store_true", help="the summary as JSON, in place of a table")


def run(args: argparse.Namespace) -> int:
    from tunecli.cli.eval import split_words

    paths, overrides = split_words(args.words)
    if len(paths) != 1:
        what = f"{len(paths)} models are named" if paths else "no model is named"
        raise UserError(what, fix="tune score RUN data.path=FILE: one of each")
    _check_flags(args)
    if args.out is not None:
        refuse_taken_file(args.out, force=args.force)
    from tunecli.engine.hub_name import refuse_missing
    from tunecli.engine.quiet import no_foreign_bars

    refuse_missing(paths[0])
    no_foreign_bars()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # encodings other than UTF-8
    return _converse(paths[0], overrides, args) if args.interactive else _score(paths[0], overrides, args)


def _check_flags(args: argparse.Namespace) -> None:
    if args.raw and not args.interactive:
        raise UserError("is for typed answers", where="--raw", fix="with --interactive, or leave it out")
    for flag in ("out", "json"):
        if args.interactive and getattr(args, flag):
            raise UserError("is for the rows of a data set", where=f"--{flag}", fix="leave out --interactive")


def _score(path: str, overrides: list[str], args: argparse.Namespace) -> int:
    import json

    from tunecli.scoring.files import as_lines, made, written
    from tunecli.scoring.judging import score_rows
    from tunecli.scoring.terminal import progress, show_judged

    loud = not args.json
    with progress(enabled=loud) as proceed:
        found = score_rows(path, overrides, proceed=lambda done: proceed("scoring", done), show_progress=loud)
    if args.out is not None:
        made(args.out.parent)
        with written(args.out) as file:
            file.writelines(as_lines(found.records))
    if args.json:
        about = {"subject": found.subject, "data": found.data, "left_out": found.left_out}
        rows = {} if args.out is not None else {"rows": found.records}
        print(json.dumps(about | found.summary | rows, indent=2, ensure_ascii=False))
        return 0
    show_judged(found, SHOWN)
    if args.out is not None:
        print(f"\nwritten: {args.out}")
    return 0


def _converse(path: str, overrides: list[str], args: argparse.Namespace) -> int:
    from tunecli.config.errors import print_error
    from tunecli.scoring.judging import Asked

    judge = Asked(path, overrides, raw=args.raw)
    print("An empty answer ends it.", file=sys.stderr)
    while True:
        try:
            prompt = input("prompt: ")
            answer = input("answer: ")
        except EOFError:
            return 0
        if not answer.strip():
            return 0
        try:
            print(f"score: {judge.score(prompt, answer):.4f}")
        except UserError as error:
            print_error(error)
