"""A conversation as rows to train on, with nothing in it that would teach what nobody meant to teach."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunecli.chat.answering import Answer
from tunecli.chat.rendering import Message
from tunecli.config.errors import UserError

STOPPED, CUT = "was stopped", "was cut at its longest"
OTHER_SYSTEM = "was given under another system message"
SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, and what one has to know of the answer to train on it."""

    question: str
    answer: Answer
    system: str
    """the system message under which it was answered; empty: none"""

    @property
    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer.text}]


@dataclass(frozen=True, slots=True)
class Saved:
    rows: int
    untrained: Counter[str]
    """why -> how many answers are not trained on"""


@dataclass(slots=True)
class Saver:
    """Writes to files, and knows what it has written there already."""

    _written: dict[Path, list[str]] = field(default_factory=dict)

    def save(self, turns: Sequence[Turn], file: Path, *, raw: bool) -> Saved:
        """Append the conversation to a .jsonl file.

        Args:
            raw: texts without turns, each of which is a row of its own.

        Raises:
            UserError: there is no whole answer, nothing new since the last time, or the file cannot be written.
        """
        if file.suffix.lower() != SUFFIX:
            fix = f"/save {file.with_suffix(SUFFIX) if file.name else 'chats.jsonl'}"
            raise UserError(f"{file} does not end in {SUFFIX}, so it would be read as something else", fix=fix)
        if not turns:
            raise UserError("there is no answer to save yet", fix="type a question first")
        rows, untrained = _texts(turns) if raw else _conversation(turns)
        if not rows:
            raise UserError("there is no whole answer to save", fix="let one come to its end")
        place = file.resolve()
        known = self._written.get(place, []) if file.exists() else []
        new = [row for row in map(_line, rows) if row not in known]
        if not new:
            raise UserError(f"nothing is new since the last /save into {file}", fix="go on talking, or another file")
        try:
            with file.open("a", encoding="utf-8") as lines:
                lines.writelines(new)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}", fix="/save another file") from None
        self._written[place] = [*known, *new]
        return Saved(len(new), untrained)


def _line(row: object) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _conversation(turns: Sequence[Turn]) -> tuple[list[dict[str, object]], Counter[str]]:
    """One row under the system message of the last whole answer; none where there is no whole answer. Answers that
    are not whole, or that another system message led to, stay in it as what was said, and are not trained on."""
    whole = [turn for turn in turns if turn.answer.ended == "end"]
    if not whole:
        return [], Counter()
    system, untrained = whole[-1].system, Counter[str]()
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        question, given = turn.messages
        if why := _why_untrained(turn, system):
            untrained[why] += 1
            given = {**given, "train": False}
        messages += [question, given]
    return [{"messages": messages}], untrained


def _why_untrained(turn: Turn, system: str) -> str:
    ended = {"stopped": STOPPED, "length": CUT}.get(turn.answer.ended, "")
    return ended or (OTHER_SYSTEM if turn.system != system else "")


def _texts(turns: Sequence[Turn]) -> tuple[list[dict[str, object]], Counter[str]]:
    """Only those that were stopped are left out: hardly any text comes to an end by itself."""
    whole = [turn for turn in turns if turn.answer.ended != "stopped"]
    rows: list[dict[str, object]] = [{"prompt": turn.question, "completion": turn.answer.text} for turn in whole]
    return rows, Counter({STOPPED: len(turns) - len(whole)} if len(whole) < len(turns) else {})
