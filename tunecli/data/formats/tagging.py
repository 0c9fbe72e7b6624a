"""`tagging`: a list of words and a list of tags, one for each."""

from __future__ import annotations

from typing import Any

from tunecli.config.counted import counted
from tunecli.data.examples import Tagged, Unusable
from tunecli.data.formats import fields


def convert(values: dict[str, Any]) -> Tagged:
    words, tags = _texts(values, "tokens"), _texts(values, "tags")
    if len(words) != len(tags):
        raise Unusable(f"{counted(len(words), 'token')} and {counted(len(tags), 'tag')}", "give each token one tag")
    if not words:
        raise Unusable("column 'tokens' is empty", "fill it in, or remove the row")
    return Tagged(words, tags)


def _texts(values: dict[str, Any], column: str) -> tuple[str, ...]:
    found = fields.required(values, column)
    if not isinstance(found, list):
        raise Unusable(f"column {column!r} holds {found!r:.60}, not a list", "write a list of texts")
    for i, each in enumerate(found):
        if isinstance(each, bool) or not isinstance(each, str | int) or not str(each).strip():
            raise Unusable(
                f"item {i + 1} of column {column!r} is {each!r:.60}, no text", "write a text without blanks around it"
            )
    return tuple(str(each) for each in found)
