"""Chat templates: choosing one, and rendering with it.

Rendering is what the tokenizer's own `apply_chat_template` does, but for the date. Some templates (Llama 3.2, say)
write today's date into the prompt through `strftime_now`; here every call of it gives `TEMPLATE_DATE`, the day that
Llama 3.1's template names by itself, so that a conversation has the same tokens on every day.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.config.errors import UserError
from tunecli.data.examples import Messages, Unusable
from tunecli.data.tokens import Span

if TYPE_CHECKING:
    import jinja2
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "chat_templates"
NAMED = {"chatml": FOLDER / "chatml.jinja", "alpaca": FOLDER / "alpaca.jinja"}
TEMPLATE_DATE = datetime.date(2024, 7, 26)


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


class ChatTemplate:
    """A tokenizer's chat template with the variables that it is rendered with.

    The text is what `tokenizer.apply_chat_template` gives. That function makes its preparations anew for each text;
    here `prepared` makes them once for a conversation, of which each answer's prompt is then a slice.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: dict[str, Any]) -> None:
        """Raises Unusable when there is no template."""
        if not tokenizer.chat_template:
            raise Unusable(
                "the tokenizer has no chat template to render messages with",
                "set data.chat_template=chatml (a base model learns it), or start from the instruct model",
            )
        from transformers.utils.chat_template_utils import _plain_template_data

        self._tokenizer = tokenizer
        self._variables = _plain_template_data({**tokenizer.special_tokens_map, **variables})
        self._templates: dict[bool, str] = {}

    def prepared(self, example: Messages) -> Messages:
        """The conversation as templates see it: plain data without keys whose value is None, for which many templates
        would write "None", and reasoning under each of the names that templates look for."""
        from transformers.utils.chat_template_utils import _alias_reasoning_fields, _plain_template_data

        present = [{key: v for key, v in message.items() if v is not None} for message in example.messages]
        messages = _alias_reasoning_fields(_plain_template_data(present))
        return replace(example, messages=messages, tools=_plain_template_data(example.tools))

    def render(self, example: Messages, end: int | None = None, *, add_generation_prompt: bool = False) -> str:
        """The text of a prepared conversation up to message `end`. Raises Unusable when the template refuses it."""
        compiled = _compiled(self._text(example))
        try:
            return compiled.render(
                messages=example.messages[:end],
                tools=example.tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except Exception as error:  # a template is a program of somebody else's
            raise _refused(error) from error

    def marks_answers(self, example: Messages) -> bool:
        """Whether the template itself marks what the assistant says."""
        return _has_marks(self._text(example))

    def render_with_marks(self, example: Messages) -> tuple[str, list[Span]]:
        """The text of a prepared conversation and the spans of characters that the template marks, in order.

        Not through `apply_chat_template`: it finds a span's tokens by character offsets, and loses the span and all
        after it when it begins with white space and the tokenizer trims offsets, as byte-level ones do by default.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[example.messages],
                tools=example.tools,
                chat_template=self._text(example),
                return_assistant_tokens_mask=True,
                **self._variables,
            )
        except Exception as error:  # a template is a program of somebody else's
            raise _refused(error) from error
        return texts[0], [(start, end) for start, end in spans[0]]

    def _text(self, example: Messages) -> str:
        """The template's own text: some tokenizers have another for conversations with tools."""
        has_tools = example.tools is not None
        if has_tools not in self._templates:
            self._templates[has_tools] = _with_fixed_date(self._tokenizer.get_chat_template(tools=example.tools))
        return self._templates[has_tools]


def _refused(error: Exception) -> Unusable:
    if "has no attribute 'content'" in str(error):
        return Unusable(
            "the chat template refuses messages without content, such as calls of tools",
            "choose a template that knows tool calls with data.chat_template=FILE.jinja, or remove the row",
        )
    return Unusable(
        f"the chat template refuses this conversation: {error or type(error).__name__}",
        "change the roles or their order in this row, or choose another template with data.chat_template",
    )


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        compiled = _compile_jinja_template(template)
    except TemplateSyntaxError as error:
        raise Unusable(
            f"the chat template has an error in line {error.lineno}: {error}", "mend it, or set data.chat_template"
        ) from error
    # They are a ChainMap, and half of a rendering's time goes into copying that.
    compiled.globals = dict(compiled.globals)
    return compiled


@lru_cache(maxsize=8)
def _has_marks(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


@lru_cache(maxsize=8)
def _with_fixed_date(template: str) -> str:
    # The name cannot be passed to the template instead: transformers hands it plain data only, no functions.
    return re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(TEMPLATE_DATE.strftime(call[2])), template
    )
