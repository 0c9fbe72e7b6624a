"""Have answers of a model judged, and write a data set to train on.

tune label recipe=label_sentiment                          prompts -> answers -> judge -> preference pairs
tune label recipe=label_sentiment mode=best_of_n           the best of several answers, to be learnt with stage=sft
tune label recipe=label_sentiment mode=given_pairs data=file data.path=pairs.jsonl    pairs that are there already
tune label recipe=smoke_label judge=openai judge.model=NAME judge.base_url=http://localhost:8000/v1

`mode=` is short for stage.mode=; everything else is as with `tune run`, which does the same. Written to the run
directory: labels.jsonl, statistics.json, left_out.jsonl. A run that was stopped or killed goes on with `tune resume`.
"""

from __future__ import annotations

import argparse

from tunecli.cli.words import split_recipe
from tunecli.config.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="recipe=NAME key=value", help="the recipe, and what to change in it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the files and commands, start nothing")
    parser.add_argument("--detach", action="store_true", help="run in the background: `tune logs -f`, `tune stop`")


def run(args: argparse.Namespace) -> int:
    recipe, overrides = split_recipe("label", args.words)
    overrides = [f"stage.{word}" if word.startswith("mode=") else word for word in overrides]
    from tunecli import launch
    from tunecli.config.compose import compose_run

    stage = compose_run(recipe, overrides).config.stage.name
    if stage != "label":
        raise UserError(f"{recipe} is for stage={stage}", where="recipe", fix=f"tune run recipe={recipe}")
    return launch.run(recipe, overrides, dry_run=args.dry_run, detach=args.detach)
