"""Texts of data and models made fit to be shown."""

from __future__ import annotations

import unicodedata

KEPT_JOINERS = "\u200c\u200d"
"""Invisible, but letters join by them in Persian and in emoji."""


def visible(text: str) -> str:
    """`text` without anything that acts on a terminal or a page unseen: controls, direction marks and the like become
    escapes. Line breaks and tabs get a sign, and line breaks break."""
    return "".join({"\n": "⏎\n", "\t": "⇥ "}.get(character) or _shown(character) for character in text)


def harmless(text: str) -> str:
    """As `visible`, but line breaks and tabs stay what they are. Each character is judged alone, so that pieces of a
    text that comes in pieces, cut wherever, join to what the whole would give."""
    return "".join(character if character in "\n\t" else _shown(character) for character in text)


def _shown(character: str) -> str:
    if character in KEPT_JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return ascii(character)[1:-1]
