"""Virtual tokens among the tokens of an example: ids that a prompt-tuning method gives embeddings to (Lester et al.,
2021; Liu et al., 2021).

A prompt stands in front of an example; a template (`tunecli.config.template`) has them at any place. They stand after
the token that opens a sequence (begin of text, [CLS]), which some models look for at the first place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tunecli.config.data import Overlong, Side
from tunecli.config.template import ANSWERS, MASK, Field, Template, Virtual, parse_template
from tunecli.data.examples import Columns, TooLong, Unusable
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding, Span, Tokens

SHORTENINGS = 8
"""Cuts after which a row counts as too long: a cut text may have more tokens than were left of it."""


def surrounded(tokens: Tokens, encoding: Encoding, opening: Sequence[int]) -> Tokens:
    """`tokens` with `encoding.before` in front of them, and `encoding.between` in front of the last answer.

    Args:
        opening: what the tokenizer puts in front of every text, which stays there.
    """
    ids, spans = tokens.input_ids, tokens.spans
    for place, virtual in ((tokens.spans[-1][0], encoding.between), (_opened(ids, opening), encoding.before)):
        ids = [*ids[:place], *virtual, *ids[place:]]
        spans = [moved for span in spans for moved in _moved(span, place, len(virtual))]
    return Tokens(ids, spans, truncated=tokens.truncated)


def _moved(span: Span, place: int, count: int) -> list[Span]:
    """Where a span is after `count` tokens were put in at `place`: in two, if that is inside it."""
    start, end = span
    if start < place < end:
        return [(start, place), (place + count, end + count)]
    return [(start + count, end + count)] if start >= place else [span]


def surrounded_prompt(ids: Sequence[int], encoding: Encoding, encoder: TextEncoder) -> list[int]:
    """The same for a prompt, which the answer follows."""
    first = _opened(ids, encoder.ends[0])
    return [*ids[:first], *encoding.before, *ids[first:], *encoding.between]


def _opened(ids: Sequence[int], opening: Sequence[int]) -> int:
    """Number of tokens that open the sequence."""
    return len(opening) if list(ids[: len(opening)]) == list(opening) else 0


@dataclass(frozen=True, slots=True)
class Filled:
    """A template with a row in it."""

    input_ids: list[int]
    answer: Span
    """where the answer's tokens are, or the mask"""
    answer_ids: list[int]
    """what is to be predicted there"""
    truncated: bool = False

    @property
    def prompt(self) -> list[int]:
        """What the answer follows."""
        return self.input_ids[: self.answer[0]]


def filled(example: Columns, encoding: Encoding, encoder: TextEncoder) -> Filled:
    """`encoding.template` with the columns of a row in it, `encoding.before` in front.

    Longer than `max_length`, the longest columns are shortened, on the side that the encoding says: never virtual
    tokens, anchor words or the answer.

    Raises:
        Unusable: the row lacks a column, the answer is empty, or a mask would stand for several tokens.
        TooLong: columns cannot be shortened enough, or are not to be.
    """
    template = parse_template(encoding.template)
    values = _values(template, example)
    for attempt in range(SHORTENINGS):
        found = _fill(template, values, encoding, encoder)
        excess = len(found.input_ids) - encoding.max_length
        if excess <= 0:
            return replace(found, truncated=attempt > 0)
        columns = {name: values[name] for name in template.fields if name not in ANSWERS}
        values = values | shortened(columns, excess, encoding, encoder)
    raise too_long(encoding)


def question(text: str, encoding: Encoding, encoder: TextEncoder) -> list[int]:
    """The prompt that a template makes of `text`: of its one column, or of several as a JSON object.

    Raises:
        Unusable: there are several columns, and `text` does not name them.
    """
    template = parse_template(encoding.template)
    columns = [name for name in template.fields if name not in ANSWERS]
    values = {columns[0]: text} if len(columns) == 1 else _named(text, columns)
    return _fill(template, values | {"label": "?"}, encoding, encoder).prompt


def _named(text: str, columns: list[str]) -> dict[str, str]:
    if not columns:
        return {}
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not set(columns) <= set(values):
        fix = f"write {json.dumps(dict.fromkeys(columns, '...'))}"
        raise Unusable(f"the template has {len(columns)} columns, and this is no JSON object of them", fix)
    return {name: str(values[name]) for name in columns}


def _values(template: Template, example: Columns) -> dict[str, str]:
    wanted = [*template.fields, *(["label"] if template.has_mask else [])]
    for name in wanted:
        if name not in example.values:
            raise Unusable(
                f"no text or number in a column {name!r}, which the template names; the row has: "
                f"{', '.join(example.values) or 'none'}",
                f"name columns of the row in the template, or set data.columns.{name}=COLUMN",
            )
    values = {name: example.values[name] for name in wanted}
    if not values["label"].strip():
        raise Unusable("no token to train on: the label is empty", "fill it in, or remove the row")
    return values


def _fill(template: Template, values: dict[str, str], encoding: Encoding, encoder: TextEncoder) -> Filled:
    opening, closing = encoder.ends
    ids = [*opening, *encoding.before]
    virtual = list(encoding.template_ids)
    text = ""
    for piece in _runs(template, values, encoder):
        if isinstance(piece, Virtual):
            ids += virtual[piece.first : piece.first + piece.count]
        else:
            ids += encoder.ids_after(text, piece)
            text += piece
    if template.has_mask:
        at = _place_of_mask(ids, encoder)
        return Filled(ids + closing, (at, at + 1), _one_token(text, values["label"], encoder))
    answer = encoder.ids_after(text, _answer_text(template, values))
    eos = encoder.tokenizer.eos_token_id
    answer += [eos] * (eos is not None)
    return Filled(ids + answer, (len(ids), len(ids) + len(answer)), answer)


def _runs(template: Template, values: dict[str, str], encoder: TextEncoder) -> Iterator[Virtual | str]:
    """Virtual tokens, and the text between them, up to the answer and the white space before it."""
    pieces = template.pieces if template.has_mask else template.pieces[:-1]
    text = ""
    for piece in pieces:
        if isinstance(piece, Virtual):
            if text:
                yield text
            text = ""
            yield piece
        elif isinstance(piece, Field):
            text += encoder.tokenizer.mask_token if piece.name == MASK else values[piece.name]
        else:
            text += piece.text
    text = text if template.has_mask else text.rstrip()
    if text:
        yield text


def _answer_text(template: Template, values: dict[str, str]) -> str:
    """The label with the white space before it: most vocabularies have words with the space that comes before."""
    before = template.pieces[-2]
    words = "" if isinstance(before, Virtual | Field) else before.text
    return words[len(words.rstrip()) :] + values["label"]


def _place_of_mask(ids: list[int], encoder: TextEncoder) -> int:
    mask = encoder.tokenizer.mask_token_id
    if ids.count(mask) != 1:
        raise Unusable(
            f"the row itself holds the mask, {encoder.tokenizer.mask_token}", "take it out, or remove the row"
        )
    return ids.index(mask)


def _one_token(text: str, label: str, encoder: TextEncoder) -> list[int]:
    before = text.partition(encoder.tokenizer.mask_token)[0]
    ids = encoder.ids_after(before, label)
    if len(ids) != 1:
        raise Unusable(
            f"the label {label!r} is {len(ids)} tokens, and the mask stands for one",
            "use labels that are one word of the vocabulary each",
        )
    return ids


def shortened(texts: dict[str, str], excess: int, encoding: Encoding, encoder: TextEncoder) -> dict[str, str]:
    """With about `excess` tokens less in the texts that are longer than all may be, of which each keeps one.

    Raises:
        TooLong: they cannot be shortened so much, or are not to be.
    """
    lengths = {name: len(encoder.ids(text)) for name, text in texts.items()}
    left = sum(lengths.values()) - excess
    if encoding.overlong is not Overlong.truncate or left < sum(length > 0 for length in lengths.values()):
        raise too_long(encoding)
    most = max(cap for cap in range(1, left + 1) if sum(min(length, cap) for length in lengths.values()) <= left)
    longer = {name: length - most for name, length in lengths.items() if length > most}
    cut = encoding.truncation_side is Side.left
    return texts | {name: encoder.cut(texts[name], count, left=cut) for name, count in longer.items()}


def too_long(encoding: Encoding) -> TooLong:
    return TooLong(
        f"the template with this row is longer than data.max_length={encoding.max_length}",
        "raise data.max_length, set data.overlong=truncate, or remove the row",
    )
