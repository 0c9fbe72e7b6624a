"""Print versions and hardware, for bug reports."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(args: argparse.Namespace) -> int:
    from tunecli.engine.environment import describe_environment

    environment = describe_environment()
    print(json.dumps(environment, indent=2) if args.json else "\n".join(_lines(environment)))
    return 0


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key}: {_word(value)}")
    return lines


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(" ".join(map(str, entry.values())) for entry in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
