"""List the shipped recipes, or the options of a group.

tune ls                   recipes
tune ls model             what `model=` can be
tune ls peft              the methods: what they train, whether they merge and work on 4-bit bases
tune ls peft recipe=R     and how much they train of that recipe's model
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from tunecli.cli.words import split_recipe
from tunecli.config.errors import UserError
from tunecli.config.nearest import did_you_mean
from tunecli.config.paths import GROUPS, config_root, recipe_names, recipe_root, summary
from tunecli.config.peft_facts import FACTS, LETTERS

WIDTH = 100
"""Of tables, in columns."""
FACT_WIDTHS = (13, 39, 27, 6, 7)
COUNT_WIDTHS = (13, 15, 15, 8)
REFUSED_WIDTHS = (13, WIDTH - 15)


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
    if args.words and not any(word.startswith("recipe=") for word in args.words):
        wanted = args.words[0] if args.words[0] in recipe_names() else "NAME"
        fix = f"tune ls peft recipe={wanted} counts on the model of a recipe; tune ls peft lists the methods"
        raise UserError(f"{args.words[0]!r} is no recipe=NAME", fix=fix)
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
    for line in _count_lines(rows, words) if words else _fact_lines():
        print(line)
    print("\nchoose: tune run recipe=NAME peft=METHOD, or several at once: peft=[lora,houlsby]; none: peft=full")
    return 0


def _known() -> list[dict[str, Any]]:
    folder = config_root() / "peft"
    files = {name: folder / f"{name}.yaml" for name in FACTS}
    return [
        {"name": name, "summary": summary(files[name]), "file": str(files[name])} | asdict(facts)
        for name, facts in FACTS.items()
    ]


def _fact_lines() -> Iterator[str]:
    yield from _folded(("name", "what it trains", "how many", "merges", "4/8-bit"), FACT_WIDTHS)
    for name, facts in FACTS.items():
        merges = _yes(facts.merges) + (" *" if facts.unmerged_with else "")
        yield from _folded((name, facts.adds, facts.count, merges, _yes(facts.quantized)), FACT_WIDTHS)
    yield ""
    yield from LETTERS
    yield "merges: the change can become part of the base's weights (tune merge); -: full leaves a whole model"
    for name, facts in FACTS.items():
        if facts.unmerged_with:
            yield f"* {name}: not with peft.{name}.{facts.unmerged_with}"
    yield "4/8-bit: works on a base with model.quantization=nf4, fp4 or int8"


def _count_lines(rows: list[dict[str, Any]], words: list[str]) -> Iterator[str]:
    yield from _folded(("name", f"{'trained':>15}", f"{'of':>15}", f"{'share':>8}"), COUNT_WIDTHS)
    for row in rows:
        if row["why"]:
            yield from _folded((row["name"], f"no: {row['why']}"), REFUSED_WIDTHS)
            yield from _folded(("", f"fix: {row['fix']}"), REFUSED_WIDTHS)
        else:
            numbers = (f"{row['trained']:>15,}", f"{row['total']:>15,}", f"{row['share']:>8.3%}")
            yield from _folded((row["name"], *numbers), COUNT_WIDTHS)
    yield ""
    yield "of: all parameters of the model, with those that the method adds: as a run counts them"
    yield from filter(None, [_note(words)])


def _folded(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The lines of one row of a table."""
    columns = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for line in zip_longest(*columns, fillvalue=""):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _counted(words: list[str]) -> list[dict[str, Any]]:
    from tunecli.count import counts
    from tunecli.engine.quiet import no_foreign_bars

    no_foreign_bars()
    return counts(*split_recipe("ls peft", words))


def _note(words: list[str]) -> str:
    from tunecli.count import head_note

    return head_note(*split_recipe("ls peft", words))


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
