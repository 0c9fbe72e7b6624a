"""Tokens of answers with what is thought of them, and of prompts alone.

A pair is one item: the chosen text with its prompt, then the rejected one with its own, each tokenised as it would be
alone, `spans` the completions. A model that scores texts reads the whole of both. Too long, each is cut where
`data.truncation_side` says; on the left both lose equally much, so that their prompts stay the same.

An encoder with a separator between texts (BERT, RoBERTa, BART) reads prompt and completion as two texts, the longer
one cut first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from tunecli.config.data import Overlong
from tunecli.config.data import Side as End
from tunecli.data.examples import Feedback, Pair, PromptCompletion, Scored, Text, TooLong, Unusable, Written
from tunecli.data.labelled import longest_first
from tunecli.data.text_encoder import Request, TextEncoder
from tunecli.data.tokens import Encoding, Tokens, fit, window
from tunecli.data.virtual import surrounded

Steps = Generator[list[Request], None, list[Tokens]]

LIKED = ("undesirable", "desirable")


@dataclass(frozen=True, slots=True)
class Side:
    """One answer with its prompt."""

    tokens: Tokens
    added: int
    """virtual tokens that are still to be put in"""
    opening: list[int] | None
    """what the tokenizer puts in front of a text; None: the tokens have been cut, and virtual ones put in"""


Read = Callable[[Written | Text], Generator[list[Request], None, Side]]


def judged(example: Pair | Scored | Feedback, read: Read, options: Encoding) -> Steps:
    """One item."""
    if isinstance(example, Pair):
        sides = [(yield from read(example.chosen)), (yield from read(example.rejected))]
        chosen, rejected = _fitting(sides, options)
        if chosen.input_ids == rejected.input_ids:
            raise _same(chosen, rejected, options)
        known = 1.0 if example.probability is None else example.probability
        return [replace(_joined(chosen, rejected), numbers=(example.margin or 0.0, known))]
    side = yield from read(example.text)
    (tokens,) = _fitting([side], options)
    if isinstance(example, Scored):
        return [replace(tokens, numbers=(example.score,))]
    return [replace(tokens, numbers=(float(example.desirable),), labels=(LIKED[example.desirable],))]


def _fitting(sides: list[Side], options: Encoding) -> list[Tokens]:
    """Each at most `max_length` long, virtual tokens included."""
    if sides[0].opening is None:
        return [side.tokens for side in sides]
    added, opening = sides[0].added, sides[0].opening
    excess = max(len(side.tokens.input_ids) for side in sides) - (options.max_length - added)
    if excess <= 0:
        cut = [side.tokens for side in sides]
    elif options.overlong is Overlong.truncate and options.truncation_side is End.left:
        cut = [_without_start(side.tokens, excess, options) for side in sides]
    else:
        cut = [tokens for side in sides for tokens in fit([side.tokens], options, added)]
    return [surrounded(tokens, options, opening) for tokens in cut] if added else cut


def _without_start(tokens: Tokens, count: int, options: Encoding) -> Tokens:
    found = window(tokens.input_ids, tokens.spans, count)
    if not found.spans:
        raise TooLong(
            f"no token of the completion is left within data.max_length={options.max_length}",
            "raise data.max_length, or remove the row",
        )
    return replace(found, truncated=True)


def _joined(chosen: Tokens, rejected: Tokens) -> Tokens:
    start = len(chosen.input_ids)
    return Tokens(
        [*chosen.input_ids, *rejected.input_ids],
        [*chosen.spans, *((first + start, last + start) for first, last in rejected.spans)],
        truncated=chosen.truncated or rejected.truncated,
        parts=(*chosen.parts, start, *(part + start for part in rejected.parts)),
    )


def _same(chosen: Tokens, rejected: Tokens, options: Encoding) -> Unusable:
    if chosen.truncated or rejected.truncated:
        return TooLong(
            f"chosen and rejected are the same within data.max_length={options.max_length}",
            "raise data.max_length, or remove the row",
        )
    return Unusable("chosen and rejected are the same tokens", "remove the row")


def encoder_text(
    text: PromptCompletion | Text, encoder: TextEncoder, options: Encoding
) -> Generator[list[Request], None, Side]:
    """`spans`: the completion, if there is a prompt too."""
    texts = [text.text] if isinstance(text, Text) else [each for each in (text.prompt, text.completion) if each]
    yield [(each, False) for each in texts]
    opening, *middle, closing = encoder.ends if len(texts) == 1 else encoder.pair_ends
    front = [*opening, *options.before]
    bodies = [encoder.ids(each) for each in texts]
    if not bodies[-1]:
        raise Unusable("the completion has no tokens", "fill it in, or remove the row")
    room = options.max_length - len(front) - sum(map(len, middle)) - len(closing)
    kept = longest_first(bodies, options, room)
    truncated = kept != bodies
    if len(texts) == 1:
        return Side(Tokens([*front, *kept[0], *closing], [], truncated=truncated), 0, None)
    before = [*front, *kept[0], *middle[0]]
    spans = [(len(before), len(before) + len(kept[1]))]
    return Side(Tokens([*before, *kept[1], *closing], spans, truncated=truncated), 0, None)


def fitting_prompt(ids: list[int], options: Encoding, columns: str) -> Tokens:
    """A prompt is cut at its start or not at all: what is at its end is to be answered."""
    excess = len(ids) - options.max_length
    if excess <= 0:
        return Tokens(ids, [], columns=columns)
    if options.overlong is Overlong.truncate and options.truncation_side is End.left and not options.before:
        return Tokens(ids[excess:], [], truncated=True, columns=columns)
    raise TooLong(
        f"the prompt's {len(ids)} tokens are more than data.max_length={options.max_length}",
        f"set data.max_length={len(ids)} or more, or data.truncation_side=left cuts it at its start",
    )
