"""What a format makes of a row: the canonical examples that tokenisation reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Messages:
    """A conversation, rendered with the tokenizer's chat template; the assistant's turns are trained."""

    messages: list[dict[str, Any]]
    context: int = 0
    """Number of messages at the start whose answers are given, not trained (a conversational prompt)."""
    untrained: tuple[int, ...] = ()
    """Indices of answers that the row itself marks as not to be trained."""
    tools: list[dict[str, Any]] | None = None
    """Descriptions of the tools that the assistant may call, as JSON schemas, for the chat template."""


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """Raw text without a chat template; the completion and the end-of-text token are trained."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text, trained from its second token on."""

    text: str


@dataclass(frozen=True, slots=True)
class Columns:
    """The texts of a row by column, for a template that says what is made of them."""

    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or two that belong together, and what is to be said of it as a whole."""

    text: str
    pair: str | None = None
    labels: tuple[str, ...] = ()
    """One; any number where several may hold; a number as text where that is asked for."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """Words, and what is to be said of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


Example = Messages | PromptCompletion | Text | Columns | Labelled | Tagged


class Unusable(Exception):
    """An example that cannot be trained on: what is wrong with it, and how to mend it. Whoever knows its file and row
    puts them in front."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return self.what


class TooLong(Unusable):
    """An example that nothing is wrong with, but that `data.max_length` and `data.overlong` leave out."""
