"""What differs between two runs as text in a terminal, a file or a pipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunecli.engine.text import visible
from tunecli.report.difference import BEST, LAST, Section
from tunecli.report.numbers import COMMIT, difference, in_words, short_hash, shown, unit_of

FIGURES = ("results", "speed")
"""Sections of numbers, whose differences mean something."""
TRAILING = re.compile(r" +((?:\x1b\[[\d;]*m)*)$", re.MULTILINE)
"""Blanks at the end of a line, before what ends a style."""
FINGERPRINT = 8
"""Digits of a fingerprint that are shown."""
PIPED = 10_000
"""Columns where there is no terminal: whoever reads a pipe wants whole lines."""


def show_differences(names: Sequence[str], sections: Sequence[Section]) -> None:
    """`names`: of the two runs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED
    for letter, name in zip("AB", names, strict=True):
        console.print(Text(f"{letter}  {visible(name)}"))
    for section in sections:
        if not section.differing:
            same = f"all {section.equal:,} the same" if section.equal else "nothing known of either"
            console.print(Text(f"\n{section.title}: {same}", style="dim"))
            continue
        console.print(Text(f"\n{section.title}", style="bold"))
        with console.capture() as captured:
            console.print(_table(section))
        console.file.write(TRAILING.sub(r"\1", captured.get()))
        if section.equal:
            console.print(Text(f"{section.equal:,} more are the same", style="dim"))


def _table(section: Section) -> Table:
    figures = section.title in FIGURES
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("", "A", "B", *(["B − A"] if figures else [])):
        table.add_column(title, overflow="fold", justify="right" if figures and title else "left")
    for name, values in section.differing.items():
        cells = _figures(name, values) if figures else (_value(name, value) for value in values)
        table.add_row(*[Text(visible(cell)) for cell in (name, *cells)])
    return table


def _figures(name: str, values: Sequence[Any]) -> Iterator[str]:
    """The values and their difference."""
    unit = unit_of(name.removesuffix(LAST).removesuffix(BEST))
    for value in values:
        yield shown(value, unit) if isinstance(value, float) or (unit and value is not None) else _value(name, value)
    if all(isinstance(value, int | float) for value in values):
        yield difference(values[1] - values[0], unit)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "—"
    if name.endswith("fingerprints"):
        return ", ".join(fingerprint[:FINGERPRINT] for fingerprint in value)
    return short_hash(value) if name == COMMIT else in_words(value)
