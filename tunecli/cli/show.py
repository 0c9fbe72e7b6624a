"""Print the resolved configuration of a recipe with its overrides, or of a run.

tune show recipe=qlora_llama65b model=llama_7b
tune show recipe=qlora_llama65b --origin         what set each value: file and line, command line, default
tune show outputs/sft_lora_smollm2/latest        what that run used
tune show RUN --words                            the words nearest to its virtual tokens
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tunecli.cli.words import split_recipe
from tunecli.config.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="recipe=NAME key=value", help="or a run directory")
    parser.add_argument("--origin", action="store_true", help="say what set each value")
    parser.add_argument(
        "--words", dest="nearest", action="store_true", help="of a run with virtual tokens: the words nearest to each"
    )
    parser.add_argument(
        "--measure", choices=["cosine", "euclidean"], default="cosine", help="what --words goes by (cosine)"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of YAML; with --origin, key to origin")


def run(args: argparse.Namespace) -> int:
    if args.nearest:
        return _show_words(args)
    if len(args.words) == 1 and "=" not in args.words[0] and Path(args.words[0]).exists():
        return _show_run(Path(args.words[0]), args)
    recipe, overrides = split_recipe("show", args.words)
    from tunecli.config.compose import compose_run
    from tunecli.config.origins import find_origins

    composed = compose_run(recipe, overrides)
    for note in composed.notes:
        print(f"note: {note}", file=sys.stderr)
    origins = find_origins(composed) if args.origin else {}
    if args.origin and args.json:
        print(json.dumps(origins, indent=2))
    else:
        _print(composed.text, args.json, origins)
    return 0


def _show_words(args: argparse.Namespace) -> int:
    if len(args.words) != 1 or "=" in args.words[0]:
        raise UserError("--words is for one run or adapter", fix="tune show RUN --words")
    from tunecli.neighbours import neighbours, show

    tokens = neighbours(args.words[0], args.measure)
    if args.json:
        values = {"measure": args.measure, "tokens": [dataclasses.asdict(token) for token in tokens]}
        print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        show(tokens, args.measure)
    return 0


def _show_run(path: Path, args: argparse.Namespace) -> int:
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is not a run directory: it holds no config.yaml")
    if args.origin:
        fix = f"`tune show {path}` prints the values; overrides.txt beside them is what the command line set"
        raise UserError("the origin of a finished configuration is not known", where=str(path), fix=fix)
    from tunecli.config.compose import load_config
    from tunecli.config.run import to_yaml
    from tunecli.config.virtual import num_virtual_tokens

    config = load_config(file)
    _print(to_yaml(config), args.json, {})
    if path.is_dir() and any(map(num_virtual_tokens, config.peft.values())):
        print(f"note: `tune show {path} --words` prints the words nearest to its virtual tokens", file=sys.stderr)
    return 0


def _print(text: str, as_json: bool, origins: dict[str, str]) -> None:
    import yaml

    values = yaml.safe_load(text)
    if as_json:
        print(json.dumps(values, indent=2))
        return
    if origins:
        text = _with_origins(values, origins)
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text.rstrip(), "yaml", theme="ansi_dark", background_color="default", word_wrap=True))


def _with_origins(values: dict[str, Any], origins: dict[str, str]) -> str:
    """One line for each value: dotted key, value, and in a comment what set it."""
    lines = [f"{key}: {json.dumps(_at(values, key), ensure_ascii=False)}" for key in origins]
    width = min(max(map(len, lines)), 72)
    return "".join(f"{line:<{width}}  # {origin}\n" for line, origin in zip(lines, origins.values(), strict=True))


def _at(values: dict[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node
