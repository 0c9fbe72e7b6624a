"""From a conversation to the tokens that the model continues: those that training put before the answer."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunecli.config.data import SystemPolicy
from tunecli.config.errors import UserError
from tunecli.config.stage import Task
from tunecli.data.examples import Messages, Unusable
from tunecli.data.prompts import chat_prompt, raw_prompt
from tunecli.data.templates import ChatTemplate
from tunecli.data.tokenize import PROBE
from tunecli.data.tokens import Encoding

Message = dict[str, Any]


class Rendering:
    """How one model was trained to see a conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, *, raw: bool) -> None:
        """
        Args:
            encoding: what the run was trained with; its `system_prompt` is the system message from the start.
            raw: the model continues a text as it is, without turns.
        """
        self.tokenizer = tokenizer
        self.raw = raw or not tokenizer.chat_template
        adds = encoding.system in (SystemPolicy.add, SystemPolicy.replace)
        self.system = encoding.system_prompt if adds else None
        # The system message is part of the conversation here, to be seen and changed.
        self._encoding = replace(encoding, system=SystemPolicy.keep)

    @property
    def continues(self) -> bool:
        """Whether an answer goes on with the text of the prompt, else it is a text of its own."""
        return self.raw and self._encoding.task is not Task.seq2seq_lm

    def without_virtual_tokens(self) -> Rendering:
        """The same conversation for a model without them."""
        plain = copy(self)
        plain._encoding = replace(self._encoding, before=(), between=(), template="", template_ids=())
        return plain

    def ids(self, messages: list[Message]) -> list[int]:
        """Of a conversation that ends with a question, or when `raw` of the last message's text.

        Raises:
            UserError: the template refuses the conversation.
        """
        try:
            if self.raw:
                return raw_prompt(messages[-1]["content"], self.tokenizer, self._encoding)
            return chat_prompt(messages, self.tokenizer, self._encoding)
        except Unusable as error:
            fix = error.fix if self.raw else "/reset begins anew, /system none leaves the system message out"
            raise UserError(error.what, fix=fix) from error

    @cached_property
    def _after_answer(self) -> str:
        """What the template writes after an answer, without white space at its end."""
        if self.raw:
            return ""
        template = ChatTemplate(self.tokenizer, self._encoding.chat_template_kwargs)
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        try:
            text = template.render(template.prepared(Messages(turns)))
        except Unusable:
            return ""
        return text.rpartition(PROBE)[2].rstrip()

    @property
    def stop_ids(self) -> list[int]:
        """The special tokens that end an answer in training."""
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        ids = self.tokenizer(self._after_answer, add_special_tokens=False)["input_ids"]
        return [token for token in ids if token in special]

    @cached_property
    def stop_text(self) -> str:
        """An end of turn that is no special token to this tokenizer, hence written out by the model."""
        ids = self.tokenizer(self._after_answer, add_special_tokens=False)["input_ids"]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
