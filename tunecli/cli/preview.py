"""Show examples as the model sees them, with the trained tokens marked, and what the data are like.

tune preview chats.jsonl                                   a file, tokenized for the recipe sft_lora_smollm2
tune preview recipe=sft_lora_smollm2 data.max_length=256   the data of a recipe; with FILE, that file instead
tune preview outputs/sft_lora_smollm2/latest               the data of a run
tune preview chats.jsonl --row 17 --tokens                 one row, token by token
tune preview chats.jsonl --html preview.html               a page to read or to pass on
"""

from __future__ import annotations

import argparse
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from tunecli.cli.words import split_recipe
from tunecli.config.errors import ConfigError, UserError
from tunecli.config.paths import recipe_names

if TYPE_CHECKING:
    from tunecli.config.run import RunConfig

RECIPE = "sft_lora_smollm2"
"""Whose model a file is tokenized for, when no recipe is named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="FILE recipe=NAME key=value", help="or a run directory")
    parser.add_argument("--num", type=_number, default=3, metavar="N", help="how many examples (3)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--row", metavar="N", help="the examples of a row: N, or FILE:N")
    which.add_argument("--longest", action="store_true", help="the longest examples instead of the first")
    which.add_argument("--random", type=_number, metavar="SEED", help="examples drawn at random")
    parser.add_argument("--validation", action="store_true", help="validation data instead of training data")
    parser.add_argument("--tokens", action="store_true", help="a table of tokens: id, text, trained")
    parser.add_argument("--full", action="store_true", help="do not leave out the middle of long texts")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs nothing else")


def run(args: argparse.Namespace) -> int:
    config = _config(args.words)
    from tunecli.preview import as_json, preview
    from tunecli.preview.examples import Wanted

    wanted = Wanted(args.num, row=args.row, longest=args.longest, random=args.random)
    result = preview(config, wanted, validation=args.validation, show_progress=not args.json)
    if args.html is not None:
        from tunecli.preview.page import write_page

        write_page(result, args.html, full=args.full)
        print(f"wrote {args.html}", file=sys.stderr)
    if args.json:
        import json

        print(json.dumps(as_json(result), indent=2))
    elif args.html is None:
        from tunecli.preview.terminal import show

        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # encodings other than UTF-8
        show(result, full=args.full, tokens=args.tokens)
    return 0


def _config(words: list[str]) -> RunConfig:
    """Of a run directory, or of a recipe with its overrides and perhaps another file."""
    files = [word for word in words if "=" not in word or Path(word).exists()]
    others = [word for word in words if word not in files]
    if len(files) > 1:
        raise UserError(f"several files: {', '.join(files)}", fix="'data.mix=[{path: a.jsonl}, {path: b.jsonl}]'")
    if files and (Path(files[0]) / "config.yaml").is_file():
        return _config_of_run(Path(files[0]), others)
    from tunecli.config.checks import find_problems
    from tunecli.config.compose import compose_run
    from tunecli.config.evaluation import EvaluationConfig

    recipe, overrides = _recipe(others, files)
    composed = compose_run(recipe, overrides)
    for note in composed.notes:
        print(f"note: {note}", file=sys.stderr)
    if files:
        composed.config.data.path = files[0]
        composed.config.evaluation = EvaluationConfig()  # of validation rows, which a file alone does not have
    if problems := find_problems(composed.config):
        raise ConfigError(problems)
    return composed.config


def _recipe(words: list[str], files: list[str]) -> tuple[str, list[str]]:
    """The recipe and its overrides; those that put the file in place of the recipe's data come first."""
    if not files:
        return split_recipe("preview", words)
    file = files[0]
    if file in recipe_names() and not Path(file).exists():
        raise UserError(f"{file} is a recipe", fix=f"tune preview recipe={file}")
    if not any(word.startswith("recipe=") for word in words):
        print(f"note: tokenized for the model of recipe={RECIPE}", file=sys.stderr)
        words = [f"recipe={RECIPE}", *words]
    recipe, overrides = split_recipe("preview", words)
    # The path itself is set afterwards: it may hold characters that mean something in an override.
    return recipe, ["data=file", "data.path=FILE", "data.validation=null", "train.eval_every=null", *overrides]


def _config_of_run(run_dir: Path, overrides: list[str]) -> RunConfig:
    if overrides:
        raise UserError(
            f"{' '.join(overrides)}: the data of a run cannot change",
            fix="tune preview recipe=NAME key=value shows what another configuration gives",
        )
    from tunecli.config.compose import load_config

    return load_config(run_dir / "config.yaml")


def _number(word: str) -> int:
    number = int(word)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number
