"""What is odd about an example or a chat template, although it can be trained."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tunecli.config.errors import Problem
from tunecli.data.examples import (
    Columns,
    Example,
    Feedback,
    Labelled,
    Messages,
    Pair,
    Prompt,
    PromptCompletion,
    Scored,
    Tagged,
    Text,
    Unusable,
)
from tunecli.data.formats.turns import is_blank
from tunecli.data.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUT_OF_ORDER = "roles out of order"
EMPTY_ANSWER = "empty answer"
EMPTY_QUESTION = "empty question"
ENDS_WITH_QUESTION = "ends with a question"
SPECIAL_TOKENS = "special tokens in the text"

ANSWER = "TUNECLI-ANSWER"


def findings(example: Example, special_tokens: Collection[str] = ()) -> list[str]:
    """Kinds of findings, each at most once. `special_tokens`: texts that the tokenizer turns into control tokens."""
    if isinstance(example, Pair):
        sides = [findings(side, special_tokens) for side in (example.chosen, example.rejected)]
        return list(dict.fromkeys(kind for found in sides for kind in found))
    if isinstance(example, Scored | Feedback):
        return findings(example.text, special_tokens)
    if isinstance(example, Prompt):
        return _question(example, special_tokens)
    if isinstance(example, Messages):
        texts = [message.get("content") or "" for message in example.messages]
        found = _conversation(example.messages)
    elif isinstance(example, PromptCompletion):
        texts = [example.prompt, example.completion]
        blank = {EMPTY_QUESTION: example.prompt, EMPTY_ANSWER: example.completion}
        found = [kind for kind, text in blank.items() if not text.strip()]
    elif isinstance(example, Columns):
        texts, found = list(example.values.values()), []
    elif isinstance(example, Labelled):
        texts, found = [example.text, example.pair or ""], []
    elif isinstance(example, Tagged):
        texts, found = list(example.words), []
    else:
        texts, found = [example.text], []
    whole = "\n".join(texts)
    return [*found, SPECIAL_TOKENS] if any(token in whole for token in special_tokens) else found


def _question(example: Prompt, special_tokens: Collection[str]) -> list[str]:
    if isinstance(example.text, str):
        return findings(Text(example.text), special_tokens)
    return [kind for kind in findings(Messages(example.text), special_tokens) if kind != ENDS_WITH_QUESTION]


def _conversation(messages: list[dict[str, Any]]) -> list[str]:
    found = {
        OUT_OF_ORDER: any(_out_of_order(first["role"], second["role"]) for first, second in pairwise(messages)),
        EMPTY_ANSWER: any(message["role"] == "assistant" and is_blank(message) for message in messages),
        EMPTY_QUESTION: any(message["role"] == "user" and is_blank(message) for message in messages),
        ENDS_WITH_QUESTION: messages[-1]["role"] != "assistant",
    }
    return [kind for kind, is_so in found.items() if is_so]


def _out_of_order(role: str, following: str) -> bool:
    """Two turns of one role (but results of several tools), or an answer to nothing but a system message."""
    return (role == following and role != "tool") or (role, following) == ("system", "assistant")


def template_problems(
    tokenizer: PreTrainedTokenizerBase, variables: dict[str, Any], stop_ids: Collection[int] = ()
) -> list[Problem]:
    """What is wrong with the tokenizer's chat template, rendered with `data.chat_template_kwargs`.

    `stop_ids`: further tokens at which the model's generation stops, besides the tokenizer's end-of-text token.
    """
    try:
        template = ChatTemplate(tokenizer, variables)
        question = {"role": "user", "content": "?"}
        chat = template.prepared(Messages([question, {"role": "assistant", "content": ANSWER}]))
        text = template.render(chat)
    except Unusable as error:
        return [Problem("data.chat_template", error.what, error.fix)]
    end = text.rpartition(ANSWER)[2].strip()
    ids = tokenizer(end, add_special_tokens=False, verbose=False)["input_ids"]
    stops = {tokenizer.eos_token_id, *stop_ids}
    if stops.isdisjoint(ids):
        return [_no_end(tokenizer, end, ids)]
    return []


def _no_end(tokenizer: PreTrainedTokenizerBase, end: str, ids: list[int]) -> Problem:
    eos = tokenizer.eos_token
    if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder:
        what = f"ends an answer with {end!r}, but generation stops at {eos!r}"
        return Problem(
            "data.chat_template", what, f"add {end!r} to the eos_token_id of the model's generation config"
        )
    what = f"writes {end!r} after an answer, no end-of-text token, so the model never learns to stop"
    fix = f"data.chat_template=chatml, or a .jinja file that writes {{{{ eos_token }}}} ({eos}) after an answer"
    return Problem("data.chat_template", what, fix)
