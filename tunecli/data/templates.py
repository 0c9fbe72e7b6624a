"""Chat templates: choosing one, and rendering with it.

Rendering is the tokenizer's own `apply_chat_template`, but for the date. Some templates (Llama 3.2, gpt-oss) write
today's date into the prompt through `strftime_now`; here every call of it gives `TEMPLATE_DATE`, the day that Llama
3.1's template names by itself, so that a conversation has the same tokens on every day.
"""

from __future__ import annotations

import datetime
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.config.errors import UserError
from tunecli.data.examples import Unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "chat_templates"
NAMED = {"chatml": FOLDER / "chatml.jinja", "alpaca": FOLDER / "alpaca.jinja"}
TEMPLATE_DATE = datetime.date(2024, 7, 26)

Span = tuple[int, int]
"""Start and end in characters, end excluded."""


def apply_chat_template_choice(tokenizer: PreTrainedTokenizerBase, choice: str | None) -> None:
    """Set `tokenizer.chat_template` to a named template or a .jinja file; None keeps the tokenizer's own."""
    if choice is None:
        return
    file = NAMED.get(choice, Path(choice).expanduser())
    if choice not in NAMED and file.suffix != ".jinja":
        raise UserError(
            f"no chat template {choice!r}",
            where="data.chat_template",
            fix=f"use {', '.join(NAMED)} or a path that ends in .jinja",
        )
    try:
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}", where="data.chat_template", fix="check the path"
        ) from None


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation. Raises Unusable when there is no template or it refuses the conversation."""
    from jinja2 import TemplateError

    template = _template(tokenizer)
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except (TemplateError, TypeError) as error:
        raise _refused(error) from error


def has_generation_spans(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template itself marks what the assistant says."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", _template(tokenizer)) is not None


def render_with_generation_spans(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]
) -> tuple[str, list[Span]]:
    """The text of a conversation and the spans that the template marks, in order.

    Not through `return_assistant_tokens_mask`: it finds a span's tokens by character offsets, and loses the span and
    all after it when it begins with white space and the tokenizer trims offsets, as byte-level ones do by default.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            # As apply_chat_template does: many templates would write "None" for them.
            conversations=[[{k: v for k, v in message.items() if v is not None} for message in messages]],
            chat_template=_template(tokenizer),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError) as error:
        raise _refused(error) from error
    return texts[0], [(start, end) for start, end in spans[0]]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise Unusable("the tokenizer has no chat template to render messages with", "set data.chat_template=chatml")
    return _with_fixed_date(tokenizer.get_chat_template())


@lru_cache(maxsize=8)
def _with_fixed_date(template: str) -> str:
    # The name cannot be passed to the template instead: transformers hands it plain data only, no functions.
    return re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(TEMPLATE_DATE.strftime(call[2])), template
    )


def _refused(error: Exception) -> Unusable:
    return Unusable(
        f"the chat template refuses this conversation: {error}",
        "change the roles or their order in this row, or choose another template with data.chat_template",
    )
