"""What was asked, out of a prompt that a chat template has rendered."""

from __future__ import annotations

import re

MARK = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>|</?(?:s|bos|eos|think|start_of_turn|end_of_turn)>|\[/?(?:INST|SYSTEM_PROMPT)\]"
)
"""Special tokens as the templates of today's families write them."""
ROLE = re.compile(r"\A\s*(system|developer|user|human|assistant|model|tool)\b[ \t]*(?:\n|\Z)", re.IGNORECASE)
ANSWERING = ("assistant", "model")


def question_of(prompt: str) -> str:
    """The last turn that is not the beginning of an answer, without special tokens and the name of who speaks.
    A prompt that holds none of these is the question itself."""
    if not MARK.search(prompt):
        return prompt
    for piece in reversed(MARK.split(prompt)):
        role = ROLE.match(piece)
        said = piece[role.end() :] if role else piece
        if said.strip() and not (role and role[1].lower() in ANSWERING):
            return said.strip()
    return prompt
