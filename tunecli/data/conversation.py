"""What the options change in a conversation before it is rendered, and which of its answers are trained."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tunecli.config.data import SystemPolicy
from tunecli.config.stage import Turns
from tunecli.data.examples import Messages

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of an assistant's message that hold what it thinks, in the order in which transformers looks them up."""
THINKING = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
"""Thinking at the start of a content. Without its opening tag where the generation prompt has written that."""


def answers(example: Messages, turns: Turns) -> list[int]:
    """Indices of the messages that are trained. `Turns.last`: only the last of those that `Turns.all` trains."""
    found = [
        i
        for i, message in enumerate(example.messages)
        if message["role"] == "assistant" and i >= example.context and i not in example.untrained
    ]
    return found[-1:] if turns is Turns.last else found


def with_system(example: Messages, policy: SystemPolicy, prompt: str | None) -> Messages:
    """With its system message added, replaced or dropped."""
    has_system = example.messages[0]["role"] == "system"
    if policy is SystemPolicy.keep or (policy is SystemPolicy.add and has_system):
        return example
    start = [] if policy is SystemPolicy.drop else [{"role": "system", "content": prompt or ""}]
    shift = len(start) - has_system
    return replace(
        example,
        messages=[*start, *example.messages[has_system:]],
        context=max(example.context + shift, 0),
        untrained=tuple(i + shift for i in example.untrained),
    )


def without_thinking(example: Messages) -> Messages:
    return replace(example, messages=[_answer_alone(message) for message in example.messages])


def _answer_alone(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "assistant":
        return message
    message = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    if found := _thinking(message):
        message["content"] = message["content"][found.end() :]
    return message


def _thinking(message: dict[str, Any]) -> re.Match[str] | None:
    content = message.get("content") or ""
    return THINKING.match(content) if "</think>" in content else None


def reasoning(message: dict[str, Any]) -> str:
    """What the assistant thinks before this answer, without tags; empty if it does not."""
    if under_key := reasoning_under_key(message):
        return under_key.strip()
    found = _thinking(message)
    return found[1].strip() if found else ""


def reasoning_under_key(message: dict[str, Any]) -> str:
    return next((message[key] for key in REASONING_KEYS if message.get(key)), "")
