"""What a model is asked at inference: the tokens that training put before an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunecli.config.data import Thinking
from tunecli.data.conversation import with_system, without_thinking
from tunecli.data.examples import Messages
from tunecli.data.templates import ChatTemplate
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RAW_FORMATS = ("text", "prompt_completion")
"""Formats that are trained without a chat template (prompt_completion unless it holds messages)."""


def chat_prompt(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> list[int]:
    """Ids of a conversation that ends with a question, with the template's generation prompt.

    Raises Unusable where the template refuses it.
    """
    example = with_system(Messages(messages), encoding.system, encoding.system_prompt)
    example = without_thinking(example) if encoding.thinking is Thinking.drop else example
    template = ChatTemplate(tokenizer, encoding.chat_template_kwargs)
    text = template.render(template.prepared(example), add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def raw_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that the model is to go on with."""
    return TextEncoder(tokenizer).ids(text, add_special_tokens=True)
