"""Score a run, an adapter or a model on a data set; or compare several on the same rows.

tune eval outputs/smoke_classify/latest             on its own validation data
tune eval RUN data.path=test.jsonl                  on all rows of a file
tune eval RUN data=movie_reviews                    on the validation rows of an option (`tune ls data`)
tune eval RUN evaluation.exact_match=50             with generated answers, of a language model
tune eval MODEL data.path=test.jsonl                a classifier, tagger or language model of somebody else's
tune eval MODEL data=glue_sst2 "stage.verbalizer={positive: great, negative: terrible}"    labels without a head
tune eval --compare RUN RUN data.path=test.jsonl    one table, and how sure the differences are
tune eval RUN harness=hellaswag,arc_easy            tasks of lm-evaluation-harness (pip install "tunecli[harness]")

Written to RUN/evaluations/NAME/ (or --out DIR): result.json, predictions.jsonl with a line for each row, report.html.
Every metric has its 95 % interval. `launch.num_processes=2` scores on two processes, with the same result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from tunecli.cli.words import refuse_taken_folder
from tunecli.config.errors import UserError, print_error

STATUS = "TUNECLI_EVAL_STATUS"
"""Names, in the environment of each rank, the file that the exit status is written to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="RUN key=value", help="run, adapter or model; data and settings")
    parser.add_argument("--compare", action="store_true", help="the first of several with each of the others")
    parser.add_argument("--no-gap", action="store_true", help="do not score training rows too")
    parser.add_argument("--task-files", type=Path, metavar="DIR", help="tasks of your own for harness=TASK")
    parser.add_argument("--few-shot", type=int, metavar="N", help="solved examples in front, with harness=TASK")
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each task, with harness=TASK")
    parser.add_argument("--chat", action="store_true", help="ask through the chat template, with harness=TASK")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write into")
    parser.add_argument("--force", action="store_true", help="replace the results that are in DIR already")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(args: argparse.Namespace) -> int:
    paths, overrides = split_words(args.words)
    if args.compare and len(paths) < 2:
        raise UserError("--compare is of two or more", fix="tune eval --compare RUN RUN")
    if not args.compare and len(paths) != 1:
        what = f"{len(paths)} are named to be scored" if paths else "nothing is named to be scored"
        raise UserError(what, fix="name one: tune eval RUN; several: tune eval --compare RUN RUN")
    if args.out is not None:
        refuse_taken_folder(args.out, force=args.force)
    from tunecli.engine.hub_name import refuse_missing

    for path in paths:
        refuse_missing(path)
    if any(word.startswith("harness=") for word in overrides):
        return _harness(paths[0], overrides, args)
    _refuse_flags_of_harness(args)
    if STATUS in os.environ:
        _as_rank(paths, overrides, args)
    if (number := _processes(overrides)) > 1:
        return _on_several(number, args)
    return _run(paths, overrides, args)


def _run(paths: list[str], overrides: list[str], args: argparse.Namespace) -> int:
    if args.json or not sys.stderr.isatty():
        from tunecli.engine.quiet import no_foreign_bars

        no_foreign_bars()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # encodings other than UTF-8
    return _compare(paths, overrides, args) if args.compare else _score(paths[0], overrides, args)


def _processes(overrides: list[str]) -> int:
    asked = [word.partition("=")[2] for word in overrides if word.startswith("launch.num_processes=")]
    return int(asked[-1]) if asked and asked[-1].isdecimal() else 1


def _on_several(number: int, args: argparse.Namespace) -> int:
    """The same command on `number` processes, which `accelerate launch` starts."""
    from tunecli.launch import ACCELERATE_CONFIG

    flags = [f"--{name.replace('_', '-')}" for name in ("compare", "no_gap", "force", "json") if getattr(args, name)]
    out = ["--out", str(args.out)] if args.out is not None else []
    with tempfile.TemporaryDirectory(prefix="tune_") as folder:
        settings, status = Path(folder) / "accelerate.yaml", Path(folder) / "status"
        settings.write_text(ACCELERATE_CONFIG.format(num_processes=number))
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings)]
        command = [*launch, "-m", "tunecli", "eval", *args.words, *flags, *out]
        done = subprocess.run(command, env=os.environ | {STATUS: str(status)}, check=False)
        return int(status.read_text()) if status.is_file() else done.returncode or 1


def _as_rank(paths: list[str], overrides: list[str], args: argparse.Namespace) -> NoReturn:
    """Does not return: the status is for the launching process, and another one than 0 would make the elastic agent
    add a traceback of its own."""
    main = os.environ.get("RANK", "0") == "0"
    if not main:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        status = _run(paths, overrides, args)
    except UserError as error:
        print_error(error)
        status = error.exit_status
    if main:
        Path(os.environ[STATUS]).write_text(str(status))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch.distributed's own teardown now and then never ends


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """What is scored, and the overrides: words with = that name nothing on this disk."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides


def _score(path: str, overrides: list[str], args: argparse.Namespace) -> int:
    from tunecli.config.paths import display
    from tunecli.peft_methods.source import find_source
    from tunecli.scoring import score
    from tunecli.scoring.files import PAGE, home, write
    from tunecli.scoring.terminal import progress, show

    main = os.environ.get("RANK", "0") == "0"
    with progress(enabled=main and not args.json) as proceed:
        scores = score(path, overrides, gap=not args.no_gap, proceed=proceed, show_progress=main and not args.json)
    if not main:
        return 0
    folder = args.out or home(find_source(path), scores.data["name"])
    write(scores, folder)
    if args.json:
        print(json.dumps(scores.as_json() | {"folder": str(folder)}, indent=2, ensure_ascii=False))
    else:
        show(scores)
        print(f"\nwritten: {display(folder.resolve() / PAGE)}")
    return 0


def _refuse_flags_of_harness(args: argparse.Namespace) -> None:
    given = {
        "--task-files": args.task_files is not None,
        "--few-shot": args.few_shot is not None,
        "--limit": args.limit is not None,
        "--chat": args.chat,
    }
    for flag, is_given in given.items():
        if is_given:
            raise UserError("is for tasks of lm-evaluation-harness", where=flag, fix="harness=TASK, or leave it out")


def _harness(path: str, overrides: list[str], args: argparse.Namespace) -> int:
    from tunecli.config.paths import display
    from tunecli.peft_methods.source import find_source
    from tunecli.scoring import harness
    from tunecli.scoring.files import PAGE, home
    from tunecli.scoring.terminal import show_harness

    if args.compare:
        raise UserError("--compare is of rows, and the harness has tasks", fix="tune eval RUN harness=TASK for each")
    options = harness.options_of(
        overrides, folder=args.task_files, num_fewshot=args.few_shot, limit=args.limit, chat=args.chat
    )
    harness.check_installed()
    if args.json or not sys.stderr.isatty():
        from tunecli.engine.quiet import no_foreign_bars

        no_foreign_bars()
    scores = harness.score_with_harness(path, options)
    folder = args.out or home(find_source(path), harness.name_of(options))
    harness.write(scores, folder)
    if args.json:
        print(json.dumps(scores.as_json() | {"folder": str(folder)}, indent=2, ensure_ascii=False))
    else:
        show_harness(scores)
        print(f"\nwritten: {display(folder.resolve() / PAGE)}")
    return 0


def _compare(paths: list[str], overrides: list[str], args: argparse.Namespace) -> int:
    from tunecli.config.paths import display
    from tunecli.scoring.comparison import compare
    from tunecli.scoring.files import FOLDER, PAGE, write_comparison
    from tunecli.scoring.terminal import progress, show_comparison

    with progress(enabled=not args.json) as proceed:
        found = compare(paths, overrides, proceed=proceed, show_progress=not args.json)
    if os.environ.get("RANK", "0") != "0":
        return 0
    folder = args.out or Path(FOLDER) / "comparison"
    write_comparison(found, folder)
    if args.json:
        print(json.dumps(found.as_json() | {"folder": str(folder)}, indent=2, ensure_ascii=False))
    else:
        show_comparison(found)
        print(f"\nwritten: {display(folder.resolve() / PAGE)}")
    return 0
