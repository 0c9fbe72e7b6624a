"""What is worked on together: a few prompts and all rows that have them.

Rows with the same prompt are in one unit. So two units never ask a judge the same question, whose answer would
depend, by rounding, on which of them asked first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunecli.data.examples import Pair, Prompt
from tunecli.judging.questions import answered, digest
from tunecli.judging.rows import Found


@dataclass(frozen=True, slots=True)
class Unit:
    number: int
    rows: tuple[int, ...]
    """indices of its rows, in order"""


def units_of(rows: Sequence[Found], prompts_together: int) -> list[Unit]:
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(_prompt_of(row), []).append(i)
    groups = list(by_prompt.values())
    parts = [groups[start : start + prompts_together] for start in range(0, len(groups), prompts_together)]
    return [Unit(number, tuple(sorted(i for group in part for i in group))) for number, part in enumerate(parts)]


def _prompt_of(row: Found) -> str:
    example = row.example
    if isinstance(example, Prompt):
        return digest(example.text)
    assert isinstance(example, Pair)
    return digest(answered(example.chosen).prompt)
