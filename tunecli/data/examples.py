"""What a format makes of a row: the canonical examples that tokenisation reads."""

from __future__ import annotations

from dataclasses import dataclass, field
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


Written = Messages | PromptCompletion
"""A prompt and what was written after it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, of which one is preferred."""

    chosen: Written
    rejected: Written
    """the same kind as `chosen`, after the same prompt"""
    margin: float | None = None
    """by how much `chosen` is better, 0 or more; None: not known"""
    probability: float | None = None
    """that `chosen` is the better one, in [0, 1]; None: it is"""


@dataclass(frozen=True, slots=True)
class Scored:
    """A text, or a completion of a prompt, and how good it is."""

    text: Written | Text
    score: float


@dataclass(frozen=True, slots=True)
class Feedback:
    """A completion of a prompt, and whether it is liked."""

    text: Written
    desirable: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked, to which it is to write the answer itself."""

    text: list[dict[str, Any]] | str
    """messages for the chat template, the last of which is no assistant's; or raw text"""
    columns: dict[str, Any] = field(default_factory=dict)
    """the other columns of the row, for what judges the answer; JSON values"""
    tools: list[dict[str, Any]] | None = None
    """as in `Messages`"""


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


Judged = Pair | Scored | Feedback
Example = Messages | PromptCompletion | Text | Columns | Labelled | Tagged | Judged | Prompt


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
