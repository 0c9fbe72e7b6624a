"""List the shipped recipes, or the options of a group.

tune ls                   recipes
tune ls model             what `model=` can be
tune ls peft              the methods: what they train, whether they merge and work on 4-bit bases
tune ls peft recipe=R     and how much they train of that recipe's model
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from tunecli.cli.words import split_recipe
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import GROUPS, config_root, recipe_root, summary
from tunecli.config.peft_facts import FACTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="recipes", help=f"recipes or one of {', '.join(GROUPS)}")
    parser.add_argument("words", nargs="*", metavar="recipe=NAME key=value", help="with peft: count on this model")
    parser.add_argument("--json", action="store_true", help="a JSON list of name, summary and file")


def run(args: argparse.Namespace) -> int:
    if args.what not in ("recipes", *GROUPS):
        hint = did_you_mean(args.what, ("recipes", *GROUPS))
        raise UserError(f"there is no group {args.what!r}", fix=f"{hint}tune ls {'|'.join(('recipes', *GROUPS))}")
    if args.words and args.what != "peft":
        raise UserError(f"{args.words[0]!r} goes with `tune ls peft` only", fix=f"tune ls {args.what}")
    if args.what == "peft":
        return _methods(args.words, args.json)
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


def _methods(words: list[str], as_json: bool) -> int:
    rows = _counted(words) if words else _known()
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    columns = ["name", "trained", "share"] if words else ["name", "adds", "count", "merges", "quantized"]
    heads = {"adds": "what it trains", "count": "how many", "quantized": "4- and 8-bit bases"}
    table = [[heads.get(column, column) for column in columns]]
    table += [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print("\nchoose: tune run recipe=NAME peft=METHOD, or several at once: peft=[lora,houlsby]; none: peft=full")
    return 0


def _known() -> list[dict[str, Any]]:
    folder = config_root() / "peft"
    files = {name: folder / f"{name}.yaml" for name in FACTS}
    return [
        {"name": name, "summary": summary(files[name]), "file": str(files[name])} | asdict(facts)
        for name, facts in FACTS.items()
    ]


def _counted(words: list[str]) -> list[dict[str, Any]]:
    from tunecli.count import counts

    recipe, overrides = split_recipe("ls peft", words)
    return counts(recipe, overrides)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3%}"
    return f"{value:,}" if isinstance(value, int) else str(value)
