"""Rows without what is to be predicted. Each gets a stand-in for it, so that it is read and tokenised exactly as in
training; nothing looks at the stand-in, as it comes after all that the model is asked, or is the target alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunecli.data.examples import Example, Labelled, Tagged
from tunecli.data.formats import Format, choose_format
from tunecli.data.formats.detect import LABELS, PAIRS, SOURCE_TARGET, TAGS, WORDS
from tunecli.evaluation.kinds import Kind

ANSWER = "-"
MESSAGE, SHAREGPT = ("role", "content", "assistant"), ("from", "value", "gpt")
"""Keys of speaker and text, and what the one who answers is called."""
OF_OTHERS = ("text", "input")
"""Columns of a source that other formats have too."""
ANSWERING = ("assistant", "gpt", "chatgpt", "model", "bing", "bard")
TARGETS = {
    "classification": "label",
    "pair_classification": "label",
    "tagging": "tags",
    "alpaca": "output",
    "prompt_completion": "completion",
    "seq2seq": "target",
}
"""Format -> its column for what is to be predicted."""


NEEDED = {
    "classification": "text",
    "pair_classification": "text_pair",
    "tagging": "tokens",
    "alpaca": "instruction",
    "prompt_completion": "prompt",
    "seq2seq": "source",
    "messages": "messages",
    "sharegpt": "conversations",
}
"""Format -> the column without which no row is of it."""


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A format that reads rows without labels or answers, and passes over those that they have."""

    format: Format
    kind: Kind
    label: str
    """any that the model knows; a number, as text, where it gives numbers"""
    raw: bool
    """the model goes on with plain text; else it answers in a conversation"""

    def __call__(self, values: dict[str, Any]) -> Example:
        example = self.format(completed(values, self.kind, self.label, raw=self.raw))
        if isinstance(example, Labelled):
            return replace(example, labels=(self.label,))
        if isinstance(example, Tagged):
            return replace(example, tags=(self.label,) * len(example.words))
        return example


def choose(
    name: str, columns: Mapping[str, str], first: dict[str, Any], kind: Kind, label: str, *, raw: bool, known: Any
) -> Unlabelled:
    """The format of a file by the first of its rows, which may lack what is to be predicted.

    Args:
        name: that of training; where it does not fit these rows, the columns tell another.
        known: formats that the model can read.

    Raises:
        UserError: no format reads these columns.
    """
    whole = completed(first, kind, label, raw=raw)
    target, needed = TARGETS.get(name), NEEDED.get(name)
    kept = {column: source for column, source in columns.items() if column != target and source in whole}
    # Plain text is all answer; here it is what the model goes on from.
    fits = name != "text" and (needed is None or needed in whole or needed in kept)
    return Unlabelled(choose_format(name if fits else "auto", kept if fits else {}, whole, known), kind, label, raw)


def completed(values: dict[str, Any], kind: Kind, label: str, *, raw: bool) -> dict[str, Any]:
    """The row with a stand-in for what it lacks."""
    if kind is Kind.tags:
        words = next((values[name] for name in WORDS if name in values), None)
        if words is None and isinstance(values.get("text"), str):
            words = values["text"].split()
            values = {**values, "tokens": words}
        if any(name in values for name in TAGS):
            return values
        return {**values, "tags": [label] * (len(words) if isinstance(words, list) else 0)}
    if kind is not Kind.text:
        return values if any(name in values for name in LABELS) else {**values, "label": label}
    return _with_answer(values, raw=raw)


def _with_answer(values: dict[str, Any], *, raw: bool) -> dict[str, Any]:
    for source, target in SOURCE_TARGET:
        if source in values and source not in OF_OTHERS:
            values = {target: ANSWER, "target": ANSWER, **values}
    for column in ("messages", "conversations"):
        turns = values.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            role, content, own = MESSAGE if "role" in turns[-1] else SHAREGPT
            answered = turns[-1].get(role) in ANSWERING
            return values if answered else {**values, column: [*turns, {role: own, content: ANSWER}]}
    if any({question, answer} <= values.keys() for question, answer, _ in PAIRS) or "completion" in values:
        return values
    if "prompt" in values:
        prompt = values["prompt"]
        if isinstance(prompt, list):
            return {**values, "completion": [{"role": "assistant", "content": ANSWER}]}
        return {**values, ("completion" if raw else "response"): ANSWER}
    for question, answer, _ in PAIRS:
        if question in values:
            return {**values, answer: ANSWER}
    if "text" in values:
        return {**values, "prompt": values["text"], ("completion" if raw else "response"): ANSWER}
    return values
