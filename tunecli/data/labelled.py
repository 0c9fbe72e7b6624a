"""Tokens of texts that are labelled as a whole, or word by word.

A text, or a pair of them, stands between the special tokens that the tokenizer itself puts there. Too long ones lose
tokens of the longer text first, as `longest_first` of transformers has it. Words are joined by single spaces and
tokenised as running text, so that every tokenizer sees words as it does elsewhere; a word's first token is the one
that its first character is in. A text of words that is longer than a window may be cut into windows that overlap;
each word is trained, and predicted, in that window in which it stands further from the edge.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import replace

from tunecli.config.data import Overlong, Side
from tunecli.config.nearest import did_you_mean
from tunecli.config.stage import ProblemType, Subwords
from tunecli.data.examples import Labelled, Tagged, TooLong, Unusable
from tunecli.data.text_encoder import Request, TextEncoder
from tunecli.data.tokens import Encoding, Span, Tokens

Steps = Generator[list[Request], None, list[Tokens]]


def labelled(example: Labelled, encoder: TextEncoder, options: Encoding) -> Steps:
    """One item, with `labels`; `parts` says where the second text of a pair begins."""
    _check_labels(example.labels, options)
    texts = [example.text] if example.pair is None else [example.text, example.pair]
    yield [(text, False) for text in texts]
    opening, *middle, closing = encoder.ends if example.pair is None else encoder.pair_ends
    added = len(opening) + sum(map(len, middle)) + len(closing) + len(options.before)
    bodies = [encoder.ids(text) for text in texts]
    kept = longest_first(bodies, options, options.max_length - added)
    first = [*opening, *options.before, *kept[0], *(middle[0] if middle else [])]
    second = kept[1] if len(kept) > 1 else []
    truncated = kept != bodies
    return [
        Tokens(
            [*first, *second, *closing],
            [],
            truncated=truncated,
            labels=example.labels,
            parts=(len(first),) if middle else (),
        )
    ]


def _check_labels(labels: tuple[str, ...], options: Encoding) -> None:
    _check_known(labels, options)
    problem = options.problem_type
    if problem is ProblemType.multi_label:
        return
    if len(labels) != 1:
        fix = "stage.problem_type=multi_label, or one label in each row"
        raise Unusable(f"{len(labels)} labels, and a text has one", fix)
    if problem is ProblemType.regression and not _is_finite(labels[0]):
        raise Unusable(f"the label {labels[0]!r} is no number", "write a number, or stage.problem_type=single_label")


def _check_known(labels: Iterable[str], options: Encoding) -> None:
    for label in labels:
        if options.labels and label not in options.labels:
            what = f"the label {label!r} is none of stage.labels: {', '.join(options.labels[:20])}"
            raise Unusable(what, f"{did_you_mean(label, options.labels)}mend the row, or name the label there")


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def longest_first(bodies: list[list[int]], options: Encoding, room: int) -> list[list[int]]:
    """The texts with at most `room` tokens in all."""
    excess = sum(map(len, bodies)) - room
    if excess <= 0:
        return bodies
    if options.overlong is not Overlong.truncate:
        raise _too_long(sum(map(len, bodies)) - room + options.max_length, options)
    if room < len(bodies):
        raise _too_long(len(bodies) - room + options.max_length, options)
    cap = max(cap for cap in range(1, room + 1) if sum(min(len(ids), cap) for ids in bodies) <= room)
    return [ids[-min(len(ids), cap) :] if options.truncation_side is Side.left else ids[:cap] for ids in bodies]


def _too_long(needed: int, options: Encoding) -> TooLong:
    return TooLong(
        f"{needed} tokens are more than data.max_length={options.max_length}",
        f"set data.max_length={needed} or more, or data.overlong=truncate",
    )


def tagged(example: Tagged, encoder: TextEncoder, options: Encoding) -> Steps:
    """One item, or one for each window. `spans` and `labels`: the trained tokens of each word, and its tag."""
    _check_known(example.tags, options)
    text = " ".join(example.words)
    yield [(text, False)]
    ids, words = encoder.ids(text), _words(example.words, text, encoder)
    if not words:
        raise Unusable("no word of it has a token", "remove the row")
    ends = [start for start, _ in words[1:]] + [len(ids)]
    first_only = options.label_subwords is Subwords.first
    spans = [(start, start + 1 if first_only else end) for (start, _), end in zip(words, ends, strict=True)]
    tags = [example.tags[word] for _, word in words]
    opening, closing = encoder.ends
    front = [*opening, *options.before]
    room = options.max_length - len(front) - len(closing)
    if len(ids) > room and options.overlong is Overlong.drop:
        raise _too_long(len(ids) - room + options.max_length, options)
    items = []
    for start, stop, first, last in _windows(len(ids), room, options):
        mine = [i for i, (begin, _) in enumerate(spans) if first <= begin < last]
        if not mine:
            continue
        shift = len(front) - start
        items.append(
            Tokens(
                [*front, *ids[start:stop], *closing],
                [_moved(spans[i], shift, stop + shift) for i in mine],
                labels=tuple(tags[i] for i in mine),
            )
        )
    if options.overlong is Overlong.truncate and len(ids) > room:
        items = [replace(items[0], truncated=True)] if items else []
    if not items:
        raise _too_long(len(ids) - room + options.max_length, options)
    return items


def _moved(span: Span, shift: int, most: int) -> Span:
    return span[0] + shift, min(span[1] + shift, most)


def _words(words: tuple[str, ...], text: str, encoder: TextEncoder) -> list[tuple[int, int]]:
    """First token and number of each word that has a token of its own, which unprintable ones may not have."""
    place, found = 0, []
    for number, word in enumerate(words):
        token = encoder.token_at(text, place)
        if token is not None and (not found or token > found[-1][0]):
            found.append((token, number))
        place += len(word) + 1
    return found


def words_with_tokens(words: tuple[str, ...], encoder: TextEncoder) -> list[int]:
    """The numbers of the words that `tagged` finds a token for."""
    return [number for _, number in _words(words, " ".join(words), encoder)]


def _windows(length: int, room: int, options: Encoding) -> list[tuple[int, int, int, int]]:
    """Start and end of each window, and start and end of the tokens whose words count in it."""
    if length <= room or options.overlong is not Overlong.split:
        start = max(length - room, 0) if options.truncation_side is Side.left else 0
        end = min(start + room, length)
        return [(start, end, start, end)]
    overlap = min(options.overlap, room - 1)
    starts = list(range(0, length - overlap, room - overlap))
    borders = [start + overlap // 2 for start in starts[1:]]
    edges = zip([0, *borders], [*borders, length], strict=True)
    return [(start, min(start + room, length), *edge) for start, edge in zip(starts, edges, strict=True)]
