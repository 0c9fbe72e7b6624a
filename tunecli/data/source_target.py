"""Tokens of a source text and a target text, for encoder-decoders.

Each text stands between the special tokens that the tokenizer itself puts around a source or a target: T5 ends both
with </s>, BART begins and ends both. The target always ends with the end-of-text token, also one that was cut (as in
T5), so that every target has something to stop at. Too long, a source loses the end that `data.truncation_side` says,
a target its end: it is read from the beginning. Virtual tokens stand in front of the source, behind what opens it, or
at its end, where a template has them between prompt and completion: they are the encoder's.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from tunecli.config.data import Overlong, Side
from tunecli.data.examples import Messages, PromptCompletion, TooLong, Unusable
from tunecli.data.text_encoder import Request, TextEncoder
from tunecli.data.tokens import Encoding, Tokens

Steps = Generator[list[Request], None, list[Tokens]]


def source_target(example: PromptCompletion, encoder: TextEncoder, options: Encoding) -> Steps:
    """One item: the source's tokens, then the target's, which `parts` says the beginning of."""
    yield [(example.prompt, False), (example.completion, False)]
    source, target = encoder.ids(example.prompt), encoder.ids(example.completion)
    if not target:
        raise Unusable("no token to train on: the target is empty", "fill it in, or remove the row")
    opening, closing = encoder.target_ends
    room = options.max_target_length - len(opening) - len(closing)
    written = _fitting(target, room, Side.right, options, ("stage.max_target_length", options.max_target_length))
    read, around = _source(source, encoder, options)
    if not read:
        raise Unusable("the source has no tokens", "fill it in, or remove the row")
    ids = [*read, *opening, *written, *closing]
    truncated = len(written) < len(target) or len(read) < len(source) + around
    return [Tokens(ids, [(len(read), len(ids))], truncated=truncated, parts=(len(read),))]


def source_ids(text: str, encoder: TextEncoder, options: Encoding) -> list[int]:
    """What the encoder reads of a text, as in training. Raises TooLong."""
    return _source(encoder.ids(text), encoder, options)[0]


def _source(body: list[int], encoder: TextEncoder, options: Encoding) -> tuple[list[int], int]:
    """The source with everything around it, and how many tokens that is."""
    opening, closing = encoder.ends
    front, end = [*opening, *options.before], [*options.between, *closing]
    room = options.max_length - len(front) - len(end)
    kept = _fitting(body, room, options.truncation_side, options, ("data.max_length", options.max_length))
    return [*front, *kept, *end], len(front) + len(end)


def _fitting(body: list[int], room: int, side: Side, options: Encoding, bound: tuple[str, int]) -> list[int]:
    """`body` without what has no room, which `side` of it that is.

    Args:
        bound: the setting that gives the room, and its value.

    Raises:
        TooLong: nothing would be left, or long texts are to be left out.
    """
    excess = len(body) - room
    if excess <= 0:
        return body
    if options.overlong is not Overlong.truncate or room < 1:
        key, most = bound
        needed = most + excess
        raise TooLong(
            f"{needed} tokens are more than {key}={most}", f"set {key}={needed} or more, or data.overlong=truncate"
        )
    return body[excess:] if side is Side.left else body[:room]


def plain_pair(example: Messages) -> PromptCompletion:
    """One question and its answer as source and target.

    Raises:
        Unusable: there is more to the conversation.
    """
    texts = [message.get("content") for message in example.messages]
    roles = [message["role"] for message in example.messages]
    if roles != ["user", "assistant"] or not all(isinstance(text, str) and text for text in texts):
        raise Unusable(
            f"a conversation ({', '.join(roles)}), and an encoder-decoder reads one text and writes one",
            "data.columns.source and data.columns.target name columns of text; data.system=drop leaves out systems",
        )
    return PromptCompletion(texts[0], texts[1])


def plain_question(messages: list[dict[str, Any]]) -> str:
    """One question as a source. Raises Unusable: there is more to the conversation."""
    text, roles = messages[-1].get("content"), [message["role"] for message in messages]
    if roles != ["user"] or not isinstance(text, str) or not text:
        raise Unusable(
            f"a conversation ({', '.join(roles)}), and an encoder-decoder reads one text",
            "data.columns.prompt names a column of text; data.system=drop leaves out systems",
        )
    return text
