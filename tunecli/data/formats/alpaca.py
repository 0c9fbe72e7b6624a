"""`alpaca`: columns instruction, input (may be empty or missing) and output, as one question and one answer; a column
`system`, and earlier questions and answers in `history` ([["question", "answer"], ...]), may come before them."""

from __future__ import annotations

from typing import Any

from tunecli.data.examples import Messages, Unusable
from tunecli.data.formats import fields


def convert(values: dict[str, Any]) -> Messages:
    instruction, context = fields.text(values, "instruction"), fields.optional_text(values, "input")
    question = f"{instruction}\n\n{context}" if context else instruction
    system = fields.optional_text(values, "system")
    start = [{"role": "system", "content": system}] if system else []
    pairs = [*_history(values.get("history")), (question, fields.answer(values, "output"))]
    return Messages(start + [message for pair in pairs for message in _messages(*pair)])


def _messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _history(history: Any) -> list[tuple[str, str]]:
    if history is None:
        return []
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Unusable(
                f"column 'history' holds {pair!r:.60}, not a pair of texts", 'write [["question", "answer"], ...]'
            )
    return [(question, answer) for question, answer in pairs]
