"""Start a run.

tune run recipe=sft_lora_smollm2                              a shipped recipe (`tune ls`)
tune run recipe=./mine.yaml                                   a recipe of your own (`tune cp`)
tune run recipe=sft_lora_smollm2 train.learning_rate=1e-4     another value
tune run recipe=sft_lora_smollm2 model=qwen3_0_6b peft=full   another option of a group (`tune ls model`)
tune run recipe=sft_lora_smollm2 --detach                     outlives this terminal (`tune logs -f RUN`)
"""

from __future__ import annotations

import argparse

from tunecli.cli.words import split_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="recipe=NAME key=value", help="the recipe, and what to change in it"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the files and commands, start nothing")
    parser.add_argument("--detach", action="store_true", help="run in the background: `tune logs -f`, `tune stop`")


def run(args: argparse.Namespace) -> int:
    recipe, overrides = split_recipe("run", args.words)
    from tunecli import launch

    return launch.run(recipe, overrides, dry_run=args.dry_run, detach=args.detach)
