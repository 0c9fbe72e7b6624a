"""Templates with virtual tokens at any place: `"{v3} {text} It was {v2} {label}"` (Liu et al., 2021, P-tuning).

`{v3}` is three virtual tokens, `{label}` what the model is to answer, `{mask}` the mask of a masked language model,
any other name in braces a column of the row; `{prompt}` and `{completion}` are the two parts of an example of any
format. The rest are anchor words. Doubled braces stand for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

ANSWERS = ("label", "completion")
"""Fields that the model is trained to give."""
MASK = "mask"
EXAMPLE = ("prompt", "completion")
"""Fields that are parts of an example, whatever its format."""
VIRTUAL = re.compile(r"v([0-9]+)")


@dataclass(frozen=True, slots=True)
class Virtual:
    first: int
    """number of the first among the virtual tokens of the template"""
    count: int


@dataclass(frozen=True, slots=True)
class Words:
    text: str


@dataclass(frozen=True, slots=True)
class Field:
    name: str


Piece = Virtual | Words | Field


@dataclass(frozen=True, slots=True)
class Template:
    """Pieces in their order. White space around virtual tokens is a border between words as it would be without them,
    so that the text reads the same; languages without spaces need none."""

    pieces: tuple[Piece, ...]

    @property
    def num_virtual_tokens(self) -> int:
        return sum(piece.count for piece in self.pieces if isinstance(piece, Virtual))

    @property
    def fields(self) -> list[str]:
        """Names, without the mask."""
        return [piece.name for piece in self.pieces if isinstance(piece, Field) and piece.name != MASK]

    @property
    def columns(self) -> list[str]:
        """The columns that it reads of a row; none where it is put around an example."""
        return [] if set(self.fields) & set(EXAMPLE) else self.fields

    @property
    def has_mask(self) -> bool:
        return Field(MASK) in self.pieces


@lru_cache
def parse_template(text: str) -> Template:
    """Raises ValueError with what is wrong with it."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no template: {error}") from None
    pieces: list[Piece] = []
    count = 0
    for words, name, spec, conversion in parts:
        if words:
            pieces.append(Words(words))
        if name is None:
            continue
        if spec or conversion or not name:
            raise ValueError(f"{text!r}: braces hold a name, or v and a number")
        if match := VIRTUAL.fullmatch(name):
            pieces.append(Virtual(count, int(match[1])))
            count += int(match[1])
        else:
            pieces.append(Field(name))
    template = Template(tuple(_one_border(pieces)))
    _check(template, text)
    return template


def _one_border(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with white space before virtual tokens moved behind them, and what begins or ends the text gone."""
    tidy: list[Piece] = []
    border = ""
    written = False
    for piece in pieces:
        if isinstance(piece, Virtual):
            tidy.append(piece)
            continue
        if isinstance(piece, Words):
            text = piece.text.lstrip() if border or not written else piece.text
            following = text.rstrip()
            if following:
                tidy.append(Words(border + following))
                written = True
                border = text[len(following) :]
            else:
                border = border or text
            continue
        if border and written:
            tidy.append(Words(border))
        tidy.append(piece)
        border, written = "", True
    return _joined(tidy)


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Words) and joined and isinstance(joined[-1], Words):
            joined[-1] = Words(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def _check(template: Template, text: str) -> None:
    names = [piece.name for piece in template.pieces if isinstance(piece, Field)]
    if not template.num_virtual_tokens:
        raise ValueError(f"{text!r} has no virtual tokens: {{v20}} is twenty of them")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{text!r} has {{{twice}}} twice")
    answers = [name for name in names if name in ANSWERS]
    if len(answers) + template.has_mask != 1:
        raise ValueError(f"{text!r} needs one of {{label}}, {{completion}} and {{mask}}: what the model is to say")
    if answers and template.pieces[-1] != Field(answers[0]):
        raise ValueError(f"{text!r}: {{{answers[0]}}} comes last, as the model answers after the rest")
    if ("prompt" in names) != ("completion" in names):
        raise ValueError(f"{text!r}: {{prompt}} and {{completion}} go together; use {{label}} with columns")
    if "prompt" in names and len(names) > 2:
        raise ValueError(f"{text!r}: beside {{prompt}} and {{completion}} there are no other fields")
