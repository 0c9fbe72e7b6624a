"""Rows without what is to be predicted, or with something in its place: a right answer, a blank. Each gets a stand-in
for it, so that it is read and tokenised exactly as in training; nothing looks at the stand-in, as it comes after all
that the model is asked, or is the target alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunecli.config.errors import UserError
from tunecli.data.examples import Example, Labelled, Tagged
from tunecli.data.formats import Format, choose_format
from tunecli.data.formats.columns import mapped, missing
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
    "columns": "label",
}
"""Format -> its column for what is to be predicted."""
TURNS = {"messages": "messages", "sharegpt": "conversations"}
"""Format -> its column of turns, of which the last is what is to be predicted."""


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
    """which maps no column to what is to be predicted"""
    kind: Kind
    label: str
    """any that the model knows; a number, as text, where it gives numbers"""
    raw: bool
    """the model goes on with plain text; else it answers in a conversation"""

    def __call__(self, values: dict[str, Any]) -> Example:
        read = mapped(completed(values, self.kind, self.label, raw=self.raw), self.format.columns)
        example = Format(self.format.name)(with_stand_in(read, self.format.name, self.label))
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
    kept = {
        column: source for column, source in columns.items() if column != target and missing(whole, source) is None
    }
    # Plain text is all answer; here it is what the model goes on from.
    fits = name != "text" and (needed is None or needed in whole or needed in kept)
    asked = (name if fits else "auto", kept if fits else {})
    try:
        found = choose_format(*asked, whole, known)
    except UserError:
        choose_format(*asked, first, known)  # which says the same of the row without stand-ins
        raise
    read = {column: source for column, source in found.columns.items() if column != TARGETS.get(found.name)}
    return Unlabelled(replace(found, columns=read), kind, label, raw)


def with_stand_in(values: dict[str, Any], name: str, label: str) -> dict[str, Any]:
    """What the format `name` reads, with a stand-in in place of what is to be predicted, whatever stands there."""
    turns, target = TURNS.get(name), TARGETS.get(name)
    if turns in values:
        return {**values, turns: _with_answer(values[turns])}
    if target is None:
        return values
    if name == "tagging":
        words = values.get("tokens")
        return {**values, target: [label] * len(words) if isinstance(words, list) else []}
    if name == "prompt_completion" and isinstance(values.get("prompt"), list):
        return {**values, target: [{"role": "assistant", "content": ANSWER}]}
    return {**values, target: label or ANSWER}


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
    return _completed_text(values, raw=raw)


def _completed_text(values: dict[str, Any], *, raw: bool) -> dict[str, Any]:
    for source, target in SOURCE_TARGET:
        if source in values and source not in OF_OTHERS:
            values = {target: ANSWER, "target": ANSWER, **values}
    for column in ("messages", "conversations"):
        if isinstance(values.get(column), list):
            return {**values, column: _with_answer(values[column])}
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


def _with_answer(turns: Any) -> Any:
    """The conversation up to its last question, and a stand-in for the answer; what is none stays as it is."""
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return turns
    role, content, own = MESSAGE if "role" in turns[-1] else SHAREGPT
    asked = turns[:-1] if turns[-1].get(role) in ANSWERING else turns
    return [*asked, {role: own, content: ANSWER}]
