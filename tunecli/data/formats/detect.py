"""Telling the format from the columns (`data.format: auto`)."""

from __future__ import annotations

from typing import Any

PAIRS = (
    ("instruction", "output", {}),
    ("instruction", "response", {"input": "context", "output": "response"}),
    ("prompt", "response", {"instruction": "prompt", "output": "response"}),
    ("question", "answer", {"instruction": "question", "output": "answer"}),
    ("query", "response", {"instruction": "query", "output": "response"}),
)
"""Columns of question and answer, and how the `alpaca` format finds them."""


def candidates(values: dict[str, Any], columns: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Formats that can read a row with these `values`, each with the columns to map besides those that the user maps.

    What the user maps decides first. Plain text only if nothing else fits: many sets have such a column too.
    """
    found = _all_candidates({*values, *columns}, values.get(columns.get("conversations", "conversations")))
    wanted = [(name, renamed) for name, keys, renamed in found if not keys.isdisjoint(columns)]
    return wanted or [(name, renamed) for name, _, renamed in found]


def _all_candidates(known: set[str], turns: Any) -> list[tuple[str, set[str], dict[str, str]]]:
    """Each with the columns that tell it."""
    found: list[tuple[str, set[str], dict[str, str]]] = []
    if "messages" in known:
        found.append(("messages", {"messages"}, {}))
    if "conversations" in known:
        found.append(_conversations(turns))
    for question, answer, columns in PAIRS:
        if {question, answer} <= known:
            renamed = {name: column for name, column in columns.items() if column in known}
            found.append(("alpaca", {question, answer}, renamed))
    if {"prompt", "completion"} <= known:
        found.append(("prompt_completion", {"prompt", "completion"}, {}))
    if found:
        return found
    return [
        ("text", {name}, {} if name == "text" else {"text": name}) for name in ("text", "content") if name in known
    ]


def _conversations(turns: Any) -> tuple[str, set[str], dict[str, str]]:
    """ShareGPT's {from, value}, or messages under another name."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, dict) and "role" in first:
        return "messages", {"conversations"}, {"messages": "conversations"}
    return "sharegpt", {"conversations"}, {}
