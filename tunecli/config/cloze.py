"""Manual templates that put a text into a sentence with a gap: `"{text} It was {mask}."` (Schick and Schuetze,
2021).

`{text}` and `{text_pair}` are the texts of a row, `{mask}` is the gap. The rest are words, written as they stand.
Doubled braces stand for themselves.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

from tunecli.config.template import MASK, Field, Words

TEXTS = ("text", "text_pair")


@dataclass(frozen=True, slots=True)
class Cloze:
    before: tuple[Words | Field, ...]
    """what comes before the gap"""
    after: tuple[Words | Field, ...]

    @property
    def texts(self) -> list[str]:
        """Names of the texts that it holds."""
        return [piece.name for piece in (*self.before, *self.after) if isinstance(piece, Field)]

    @property
    def words_before(self) -> str:
        """The template's own words right before the gap."""
        last = self.before[-1] if self.before else Words("")
        return last.text if isinstance(last, Words) else ""

    @property
    def ends_with_gap(self) -> bool:
        """But for white space and punctuation."""
        return all(isinstance(piece, Words) and _says_nothing(piece.text) for piece in self.after)


@lru_cache
def parse_cloze(text: str) -> Cloze:
    """Raises ValueError with what is wrong with it."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no template: {error}") from None
    pieces: list[Words | Field] = []
    for words, name, spec, conversion in parts:
        if words and pieces and isinstance(pieces[-1], Words):  # doubled braces come apart
            pieces[-1] = Words(pieces[-1].text + words)
        elif words:
            pieces.append(Words(words))
        if name is None:
            continue
        if spec or conversion or name not in (*TEXTS, MASK):
            raise ValueError(f"{text!r}: braces hold text, text_pair or mask")
        pieces.append(Field(name))
    names = [piece.name for piece in pieces if isinstance(piece, Field)]
    if names.count(MASK) != 1:
        raise ValueError(f"{text!r} needs exactly one {{mask}}, where the word for the label stands")
    if "text" not in names:
        raise ValueError(f"{text!r} has no {{text}}, so that all rows would read the same")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{text!r} has {{{twice}}} twice")
    gap = pieces.index(Field(MASK))
    return Cloze(tuple(pieces[:gap]), tuple(pieces[gap + 1 :]))


def _says_nothing(text: str) -> bool:
    return all(character.isspace() or unicodedata.category(character).startswith("P") for character in text)
