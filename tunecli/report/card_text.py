"""Text of model cards: whatever comes from data or a configuration stands in code spans or is escaped, so that it is
read as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tunecli.engine.run_names import TIME
from tunecli.engine.text import visible


def public(path: str) -> str:
    """A Hub id as it is; of a path on this machine only its last part, since cards are published; of a run directory
    its recipe too."""
    if not path.startswith(("/", "~", "./", "../")):
        return path
    place = Path(path)
    is_run = place.name == "latest" or TIME.fullmatch(place.name)
    return f"{place.parent.name}/{place.name}" if is_run else place.name


def code(text: str) -> str:
    """`text` as a code span, inside which neither Markdown nor HTML means anything. Also in tables."""
    line = visible(text.replace("\n", " ")).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def escaped(text: str) -> str:
    """`text` as plain words of Markdown."""
    line = visible(text.replace("\n", " ")).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#~$!])|(?<!\w)_|_(?!\w)", lambda match: "\\" + match[0], line)


def string(text: str) -> str:
    """A Python literal on one line, without anything invisible."""
    return json.dumps(text)


def python(text: str) -> str:
    return f"```python\n{text}\n```"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
