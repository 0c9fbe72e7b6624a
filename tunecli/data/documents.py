"""Plain documents for masked language models and encoder-decoders: windows of `max_length` tokens without overlap,
each between the tokenizer's special tokens. Documents for causal models need none: see `tunecli.data.tokenize`."""

from __future__ import annotations

from collections.abc import Generator
from itertools import groupby

from tunecli.config.data import Overlong, Side
from tunecli.data.examples import Text, TooLong, Unusable
from tunecli.data.text_encoder import Request, TextEncoder
from tunecli.data.tokens import Encoding, Span, Tokens

Steps = Generator[list[Request], None, list[Tokens]]


def documents(example: Text, encoder: TextEncoder, options: Encoding) -> Steps:
    """One item, or one for each window of a longer text, each between the tokenizer's special tokens. `spans`: the
    tokens that may be masked."""
    yield [(example.text, False)]
    ids = encoder.ids(example.text)
    opening, closing = encoder.ends
    front = [*opening, *options.before]
    room = options.max_length - len(front) - len(closing)
    if room < 1 or (len(ids) > room and options.overlong is Overlong.drop):
        needed = len(front) + len(ids) + len(closing)
        raise TooLong(
            f"{needed} tokens are more than data.max_length={options.max_length}",
            f"set data.max_length={needed} or more, or data.overlong=split",
        )
    special = set(encoder.tokenizer.all_special_ids)
    items = []
    for start, end in _windows(len(ids), room, options):
        whole = [*front, *ids[start:end], *closing]
        spans = _ordinary(whole, len(front), len(front) + end - start, special)
        if spans:
            items.append(Tokens(whole, spans, truncated=end - start < len(ids) and not _splits(options)))
    if not items:
        raise Unusable("no token to train on: there are special tokens only", "fill it in, or remove the row")
    return items


def _splits(options: Encoding) -> bool:
    return options.overlong is Overlong.split


def _windows(length: int, room: int, options: Encoding) -> list[Span]:
    if length <= room:
        return [(0, length)]
    if _splits(options):
        return [(start, min(start + room, length)) for start in range(0, length, room)]
    return [(length - room, length)] if options.truncation_side is Side.left else [(0, room)]


def _ordinary(ids: list[int], start: int, end: int, special: set[int]) -> list[Span]:
    """The runs of tokens from `start` to `end` that are not special."""
    spans = []
    for is_special, run in groupby(range(start, end), key=lambda i: ids[i] in special):
        places = list(run)
        if not is_special:
            spans.append((places[0], places[-1] + 1))
    return spans
