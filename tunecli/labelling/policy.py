"""The model whose answers are judged, asked as it was trained to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from tunecli.assembly.data import encoding_of
from tunecli.config.errors import UserError
from tunecli.config.model import DType, Quantization
from tunecli.config.run import RunConfig
from tunecli.config.stage import Task
from tunecli.data.examples import Prompt, Unusable
from tunecli.data.prompts import chat_prompt, raw_prompt
from tunecli.data.templates import apply_chat_template_choice
from tunecli.models.generate import generate, stop_ids
from tunecli.models.load import load_model
from tunecli.peft_methods.loading import base_task, device, dtype_of, require_one, tokenizer_of
from tunecli.peft_methods.saving import load_adapters
from tunecli.peft_methods.source import Source, find_source
from tunecli.peft_methods.token_ids import places_in_saved

CONTEXT = 8
"""Tokens of a text that what goes on with it is decoded with: whether it begins with a space depends on them."""


def source_of(config: RunConfig) -> Source:
    """What `model.path` names: a run with its adapters, or a model.

    Raises:
        UserError: there is no such model, or it is no causal language model.
    """
    found, asked = find_source(config.model.path), config.model
    require_one(found)
    if not found.adapters and found.run is None:
        found = replace(found, base=replace(asked, path=found.base.path))
    elif asked.quantization is not Quantization.none:
        found = replace(found, base=replace(found.base, quantization=asked.quantization))
    if base_task(found) is not Task.causal_lm:
        what = f"is a model for {base_task(found).value}, and answers are written by causal language models"
        raise UserError(what, where=config.model.path, fix="model.path=RUN of such a model")
    return found


class Policy:
    """Its weights are loaded when something is to be written."""

    def __init__(self, config: RunConfig) -> None:
        """
        Raises:
            UserError: as `source_of`.
        """
        self.config = config
        self.source = source_of(config)
        self.tokenizer = tokenizer_of(self.source)
        apply_chat_template_choice(self.tokenizer, config.data.chat_template)
        places = places_in_saved(self.source.adapters, self.tokenizer)
        self.encoding = replace(encoding_of(config, self.tokenizer), **places)

    @cached_property
    def _lm(self) -> PreTrainedModel:
        chosen = self.config.model.dtype
        dtype = dtype_of(self.source) if chosen is DType.auto else getattr(torch, chosen.value)
        lm = load_model(self.source.base, dtype=dtype, device=device())
        load_adapters(lm, self.source.adapters)
        return lm.eval()

    def ids(self, prompt: Prompt) -> list[int]:
        """Tokens up to where the answer begins.

        Raises:
            Unusable: the template refuses the conversation, or the prompt is longer than data.max_length.
        """
        found = self._rendered(prompt.text)
        if len(found) > self.config.data.max_length:
            what = f"the prompt has {len(found):,} tokens, more than data.max_length={self.config.data.max_length}"
            raise Unusable(what, "raise data.max_length, or remove the row")
        return found

    def chat_ids(self, turns: list[dict[str, Any]]) -> list[int]:
        """The same of a conversation that the model has had with itself, however long."""
        try:
            return self._rendered(turns)
        except Unusable as error:
            raise UserError(error.what, where=self.source.path, fix=error.fix) from None

    def _rendered(self, text: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(text, str):
            return raw_prompt(text, self.tokenizer, self.encoding)
        if not self.tokenizer.chat_template:
            raise Unusable(
                "the prompt has messages, and the model no chat template",
                "data.chat_template=chatml, or prompts that are texts",
            )
        return chat_prompt(text, self.tokenizer, self.encoding)

    def write(self, prompts: Sequence[list[int]], *, raw: Sequence[bool], seed: int) -> list[str]:
        """An answer to each.

        Args:
            raw: for each whether its answer goes on with a text, else it is a message of its own.
        """
        if not prompts:
            return []
        stage = self.config.stage
        answers = generate(
            self._lm,
            prompts,
            max_new_tokens=stage.max_new_tokens,  # type: ignore[attr-defined]
            stop_ids=stop_ids(self._lm, self.tokenizer.eos_token_id),
            pad_token_id=self.tokenizer.pad_token_id or 0,
            temperature=stage.temperature,  # type: ignore[attr-defined]
            seed=seed,
        )
        return [
            self._continued(prompt, answer) if continues else self._decoded(answer).strip()
            for prompt, answer, continues in zip(prompts, answers, raw, strict=True)
        ]

    def _continued(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        before = self._decoded(prompt[-CONTEXT:])
        text = self._decoded([*prompt[-CONTEXT:], *answer])
        return text[len(before) :] if text.startswith(before) else self._decoded(answer)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
