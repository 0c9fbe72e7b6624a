"""What a judge is asked, as text, and what it may say.

A comparison is asked in both orders, so that a preference for the first place cancels out (Zheng et al., 2023). With
principles, each comparison is asked by some of a constitution, drawn by the seed and the answers, whichever stands
first (Bai et al., 2022).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunecli.config.judge_files import Principle, Template
from tunecli.data.examples import Messages, Text, Written

Conversation = str | tuple[tuple[str, str], ...]
"""A text, or the turns before an answer: (role, text)"""


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and an answer to it."""

    prompt: Conversation
    answer: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A prompt and two answers to it."""

    prompt: Conversation
    first: str
    second: str

    @property
    def swapped(self) -> Compared:
        return Compared(self.prompt, self.second, self.first)


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    """as one turn of a user"""
    verdict: str
    """what the verdict begins with"""
    choices: tuple[str, ...]
    reasoned: bool
    """reasons come before the verdict"""


def answered(written: Written | Text) -> Answered:
    """A row's prompt and answer, the turns of the answer as one text."""
    if isinstance(written, Text):
        return Answered("", written.text)
    if not isinstance(written, Messages):
        return Answered(written.prompt, written.completion)
    context = tuple((message["role"], _content(message)) for message in written.messages[: written.context])
    last = [_content(message) for message in written.messages[written.context :] if message["role"] == "assistant"]
    return Answered(context, "\n\n".join(last))


def conversation_of(prompt: str | Sequence[Mapping[str, Any]]) -> Conversation:
    """Of a row of prompts."""
    return prompt if isinstance(prompt, str) else tuple((turn["role"], _content(turn)) for turn in prompt)


def prompt_text(prompt: Conversation) -> str:
    """A single question as it is; of a longer conversation who says what."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0][0] == "user":
        return prompt[0][1]
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in prompt)


def ask(values: Mapping[str, str], template: Template, *, reasoned: bool) -> Question:
    """
    Args:
        values: place of the template -> text.
    """
    shown = [
        "\n\n".join(
            [
                filled(template.body, example.values),
                *([example.reason] if reasoned else []),
                f"{template.verdict} {example.verdict}",
            ]
        )
        for example in template.examples
    ]
    parts = [template.preamble, *shown, filled(template.body, values), template.reason if reasoned else template.ask]
    return Question("\n\n".join(parts), template.verdict, template.choices, reasoned)


def compare(pair: Compared, template: Template, *, reasoned: bool, principle: str = "") -> Question:
    values = {"prompt": prompt_text(pair.prompt), "first": pair.first, "second": pair.second, "principle": principle}
    return ask(values, template, reasoned=reasoned)


def rate(item: Answered, template: Template, *, reasoned: bool) -> Question:
    return ask({"prompt": prompt_text(item.prompt), "answer": item.answer}, template, reasoned=reasoned)


def filled(body: str, values: Mapping[str, str]) -> str:
    """In one pass: braces in what is put in stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), body)


def drawn(principles: Sequence[Principle], number: int, pair: Compared, seed: int) -> list[Principle]:
    """`number` different principles, the same for both orders of a pair."""
    content = [prompt_text(pair.prompt), *sorted((pair.first, pair.second))]
    return random.Random(digest([seed, content])).sample(list(principles), number)


def digest(value: Any) -> str:
    """A hash of a JSON value."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message; of parts, that of those that are text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))
