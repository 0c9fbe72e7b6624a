"""List the shipped recipes, or the options of a group.

tune ls           recipes
tune ls model     what `model=` can be
"""

from __future__ import annotations

import argparse
import json

from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import GROUPS, config_root, recipe_root, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="recipes", help=f"recipes or one of {', '.join(GROUPS)}")
    parser.add_argument("--json", action="store_true", help="a JSON list of name, summary and file")


def run(args: argparse.Namespace) -> int:
    if args.what not in ("recipes", *GROUPS):
        hint = did_you_mean(args.what, ("recipes", *GROUPS))
        raise UserError(f"there is no group {args.what!r}", fix=f"{hint}tune ls {'|'.join(('recipes', *GROUPS))}")
    folder = recipe_root() if args.what == "recipes" else config_root() / args.what
    files = sorted(folder.glob("*.yaml"))
    if args.json:
        print(
            json.dumps([{"name": file.stem, "summary": summary(file), "file": str(file)} for file in files], indent=2)
        )
        return 0
    width = max(len(file.stem) for file in files)
    for file in files:
        print(f"{file.stem:<{width}}  {summary(file)}")
    if args.what == "recipes":
        print(f"\nstart one: tune run recipe=NAME        options of a group: tune ls {'|'.join(GROUPS)}")
    else:
        print(f"\nchoose one: tune run recipe=NAME {args.what}=OPTION")
    return 0
