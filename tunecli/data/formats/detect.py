"""Telling the format from the columns (`data.format: auto`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

PAIRS = (
    ("instruction", "output", {}),
    ("instruction", "response", {"input": "context", "output": "response"}),
    ("prompt", "response", {"instruction": "prompt", "output": "response"}),
    ("question", "answer", {"instruction": "question", "output": "answer"}),
    ("query", "response", {"instruction": "query", "output": "response"}),
)
"""Columns of question and answer, and how the `alpaca` format finds them."""


TEXTS = ("text", "sentence", "content", "review")
TEXT_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
)
SOURCE_TARGET = (
    ("source", "target"),
    ("article", "highlights"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("input", "target"),
)
"""Columns of what is read and what is written."""
ANSWERS = ("completion", "response", "messages", "text")
"""Columns that may hold what a score or a label is for."""
QUESTIONS = ("prompt", "question", "query", "instruction")
LABELS = ("label", "labels")
WORDS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")


def candidates(
    values: dict[str, Any], columns: dict[str, str], known: Collection[str]
) -> list[tuple[str, dict[str, str]]]:
    """Formats of `known` that can read a row with these `values`, each with the columns to map besides those that the
    user maps.

    What the user maps decides first. Plain text only if nothing else fits: many sets have such a column too.
    """
    names = {*values, *columns}
    all_found = [
        *_labelled(names),
        *_text_to_text(names),
        *_judged(names),
        *_all_candidates(names, values.get(columns.get("conversations", "conversations"))),
    ]
    found = [each for each in all_found if each[0] in known]
    # Of answers with scores, and of answers alone, these say more of the same row.
    found = [each for each in found if each[0] in ("preference", "scored")] or found
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


def _labelled(known: set[str]) -> Iterator[tuple[str, set[str], dict[str, str]]]:
    label = next((name for name in LABELS if name in known), None)
    words, tags = (next((name for name in names if name in known), None) for names in (WORDS, TAGS))
    if words and tags:
        yield "tagging", {words, tags}, _renamed({"tokens": words, "tags": tags})
    if label is None:
        return
    pairs = [pair for pair in TEXT_PAIRS if known.issuperset(pair)]
    for first, second in pairs:
        renamed = _renamed({"text": first, "text_pair": second, "label": label})
        yield "pair_classification", {first, second, label}, renamed
    texts = [name for name in TEXTS if name in known]
    if texts and not pairs:
        yield "classification", {texts[0], label}, _renamed({"text": texts[0], "label": label})


def _text_to_text(known: set[str]) -> Iterator[tuple[str, set[str], dict[str, str]]]:
    pair = next((pair for pair in SOURCE_TARGET if known.issuperset(pair)), None)
    if pair is not None:
        yield "seq2seq", set(pair), _renamed({"source": pair[0], "target": pair[1]})


def _judged(known: set[str]) -> Iterator[tuple[str, set[str], dict[str, str]]]:
    compared = {"chosen", "rejected"} <= known
    if compared:
        yield "preference", {"chosen", "rejected"}, {}
    answer = next((name for name in ANSWERS if name in known), None)
    if "score" in known and answer and not compared:
        column = "completion" if answer == "response" else answer
        yield "scored", {answer, "score"}, _renamed({column: answer})
    if {"prompt", "label"} <= known and answer in ("completion", "response"):
        yield "feedback", {"prompt", answer, "label"}, _renamed({"completion": answer})
    question = next((name for name in QUESTIONS if name in known), None)
    if question is not None:
        yield "prompts", {question}, _renamed({"prompt": question})


def _renamed(columns: dict[str, str]) -> dict[str, str]:
    return {name: column for name, column in columns.items() if name != column}


def _conversations(turns: Any) -> tuple[str, set[str], dict[str, str]]:
    """ShareGPT's {from, value}, or messages under another name."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, dict) and "role" in first:
        return "messages", {"conversations"}, {"messages": "conversations"}
    return "sharegpt", {"conversations"}, {}
