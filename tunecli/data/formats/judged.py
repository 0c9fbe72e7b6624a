"""Answers with what is thought of them.

`preference`: `chosen` and `rejected`, two answers to one prompt, with optional columns `margin` (by how much the one
is better) and `probability` (that it is). Each is a text, or a list of messages. The prompt stands apart, in the
column `prompt`, or at the beginning of both: the messages that both lists begin with, or the text up to the last
"Assistant:" (as in Anthropic's HH-RLHF). `scored`: `score`, a number for a `completion` of `prompt`, for the last
answer of `messages`, or for a `text`. `feedback`: `label`, whether a `completion` of `prompt` is liked.
"""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

from tunecli.data.examples import Feedback, Messages, Pair, PromptCompletion, Scored, Text, Unusable, Written
from tunecli.data.formats import fields
from tunecli.data.formats.turns import read_conversation, read_turns

ASSISTANT = "\n\nAssistant:"
"""What an answer follows where a dialogue is one text."""
LIKED = {"true": True, "false": False, "1": True, "0": False, "desirable": True, "undesirable": False}


def convert_pair(values: dict[str, Any]) -> Pair:
    chosen, rejected = fields.required(values, "chosen"), fields.required(values, "rejected")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise Unusable("chosen and rejected are of two kinds, text and messages", "write both in the same way")
    sides = _lists(values, chosen, rejected) if isinstance(chosen, list) else _texts(values)
    pair = Pair(*sides, margin=_optional(values, "margin"), probability=_optional(values, "probability"))
    check_pair(pair)
    return pair


def convert_scored(values: dict[str, Any]) -> Scored:
    score = number(fields.required(values, "score"), "score")
    if "completion" in values:
        return Scored(_written(values, "completion"), score)
    if "messages" in values:
        return Scored(_last_answer(values), score)
    return Scored(Text(fields.answer(values, "text")), score)


def convert_feedback(values: dict[str, Any]) -> Feedback:
    label = fields.required(values, "label")
    liked = LIKED.get(str(label).strip().lower().removesuffix(".0"))
    if liked is None:
        raise Unusable(f"column 'label' holds {label!r:.60}", "write true where the completion is liked, or false")
    return Feedback(_written(values, "completion"), liked)


def check_pair(pair: Pair) -> None:
    """Raise Unusable where nothing can be learnt from the comparison."""
    if pair.chosen == pair.rejected:
        raise Unusable("chosen and rejected are identical", "remove the row")
    if type(pair.chosen) is not type(pair.rejected) or prompt_of(pair.chosen) != prompt_of(pair.rejected):
        raise Unusable(
            "chosen and rejected begin with different prompts, so they cannot be compared",
            "let both answer the same prompt, or remove the row",
        )
    if pair.margin is not None and not 0 <= pair.margin < math.inf:
        raise Unusable(f"the margin is {pair.margin:g}", "write a number from 0, or swap chosen and rejected")
    if pair.probability is not None and not 0 <= pair.probability <= 1:
        raise Unusable(f"the probability is {pair.probability:g}", "write a number from 0 to 1")


def prompt_of(written: Written) -> str | list[dict[str, Any]]:
    return written.prompt if isinstance(written, PromptCompletion) else written.messages[: written.context]


def number(value: Any, column: str) -> float:
    """A finite number, which may stand there as a text."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise Unusable(
            f"column {column!r} holds {value!r:.60}, no finite number",
            f"write a number, or name another column with data.columns.{column}=COLUMN",
        )
    return found


def _optional(values: dict[str, Any], column: str) -> float | None:
    return None if values.get(column) is None else number(values[column], column)


def _texts(values: dict[str, Any]) -> tuple[Written, Written]:
    """From two texts, whose prompt may be messages all the same."""
    if isinstance(values.get("prompt"), list):
        return _written(values, "chosen"), _written(values, "rejected")
    chosen, rejected = fields.answer(values, "chosen"), fields.answer(values, "rejected")
    if values.get("prompt") is not None:
        prompt = fields.text(values, "prompt")
        return PromptCompletion(prompt, chosen), PromptCompletion(prompt, rejected)
    return _split(chosen, "chosen"), _split(rejected, "rejected")


def _split(text: str, column: str) -> PromptCompletion:
    """A dialogue at its last answer; any other text has no prompt."""
    before, mark, answer = text.rpartition(ASSISTANT)
    if mark and not answer.strip():
        raise Unusable(f"the answer in column {column!r} is blank", "fill it in, or remove the row")
    return PromptCompletion(before + mark, answer)


def _lists(values: dict[str, Any], chosen: list[Any], rejected: list[Any]) -> tuple[Written, Written]:
    """From two lists of messages."""
    first, second = read_turns(chosen, "chosen"), read_turns(rejected, "rejected")
    if first == second:
        raise Unusable("chosen and rejected are identical", "remove the row")
    answers_alone = first[0]["role"] == second[0]["role"] == "assistant"
    if answers_alone and values.get("prompt") is not None:
        return _written(values, "chosen"), _written(values, "rejected")
    shared = next(i for i, (a, b) in enumerate(zip_longest(first, second)) if a != b)
    if not shared or any(side[shared:] and side[shared]["role"] != "assistant" for side in (first, second)):
        raise Unusable(
            "chosen and rejected begin with different prompts, so they cannot be compared",
            "let both answer the same prompt, in both lists or in a column prompt, or remove the row",
        )
    tools = values.get("tools")
    return (
        read_conversation(chosen[shared:], "chosen", tools, context=chosen[:shared]),
        read_conversation(rejected[shared:], "rejected", tools, context=rejected[:shared]),
    )


def _written(values: dict[str, Any], column: str) -> Written:
    """What stands in `column`, after the prompt: messages where one of the two is a list of them."""
    prompt, completion = values.get("prompt"), fields.required(values, column)
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return PromptCompletion(fields.optional_text(values, "prompt"), fields.answer(values, column))
    if not isinstance(completion, list):
        completion = [{"role": "assistant", "content": fields.answer(values, column)}]
    if not isinstance(prompt, list):
        prompt = [{"role": "user", "content": fields.text(values, "prompt")}]
    return read_conversation(completion, column, values.get("tools"), context=prompt)


def _last_answer(values: dict[str, Any]) -> Messages:
    turns = read_turns(fields.required(values, "messages"), "messages")
    if turns[-1]["role"] != "assistant":
        raise Unusable(
            "the last message is no assistant's, and the score is one of its answer", "end with the answer"
        )
    return read_conversation(turns[-1:], "messages", values.get("tools"), context=turns[:-1] or None)
