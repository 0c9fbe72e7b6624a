"""A causal language model on this machine as judge, loaded when the first question is not in the cache.

The verdict is read off the model's own probabilities: the question goes through its chat template, what a verdict
begins with is put into its mouth, and the possible verdicts are weighed as what comes next (Lee et al., 2023). With
reasons, the model writes these first, and is then asked in the same way. Votes are written answers instead.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tunecli.config.errors import UserError
from tunecli.config.judge import LocalJudgeConfig, model_of
from tunecli.config.model import DType, Quantization
from tunecli.config.stage import Task
from tunecli.data.examples import Unusable
from tunecli.data.prompts import chat_prompt, raw_prompt
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding
from tunecli.judging import verdicts
from tunecli.judging.backend import Ask, Reply, Usage
from tunecli.judging.fingerprint import fingerprint
from tunecli.judging.next_tokens import Wanted, logprobs
from tunecli.judging.questions import Question
from tunecli.judging.verdicts import Verdicts
from tunecli.models.generate import generate, stop_ids
from tunecli.models.load import load_model
from tunecli.models.policy import ONEDNN_MULTIPLE, Policy
from tunecli.models.self_test import choose_policy
from tunecli.peft_methods.loading import base_task, device, dtype_of, require_one, tokenizer_of
from tunecli.peft_methods.saving import load_adapters
from tunecli.peft_methods.source import Source, find_source
from tunecli.peft_methods.token_ids import places_in_saved

ROOM = 1_000_000
"""Tokens that a model takes which does not say how many it takes."""


def source_of(config: LocalJudgeConfig) -> Source:
    """
    Raises:
        UserError: there is no such model, it is no causal one, or its adapters are alternatives.
    """
    found = find_source(config.path)
    require_one(found)
    own, asked = found.base, model_of(config)
    if not found.adapters and found.run is None:
        found = replace(found, base=replace(asked, path=own.path))
    elif config.quantization is not Quantization.none:
        found = replace(found, base=replace(own, quantization=config.quantization))
    if base_task(found) is not Task.causal_lm:
        what = f"is a model for {base_task(found).value}, and no causal language model"
        raise UserError(what, where=config.path, fix="judge=reward_model takes classifiers")
    return found


class Local:
    together = True

    def __init__(self, config: LocalJudgeConfig) -> None:
        """
        Raises:
            UserError: as `source_of`.
        """
        self.config = config
        self.source = source_of(config)
        self.name = config.path
        self.usage = Usage()

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {
            "backend": "local",
            "model": fingerprint(self.source),
            "dtype": str(self._dtype),
            "quantization": self.source.base.quantization.value,
            "chat_template_kwargs": dict(self.config.chat_template_kwargs),
        }

    @property
    def _dtype(self) -> torch.dtype:
        chosen = self.config.dtype
        return dtype_of(self.source) if chosen is DType.auto else getattr(torch, chosen.value)

    @cached_property
    def _model(self) -> _Model:
        lm = load_model(self.source.base, dtype=self._dtype, device=device()).eval()
        policy = choose_policy(lm, self.config.attention).policy
        assert isinstance(policy, Policy)
        load_adapters(lm, self.source.adapters)
        policy.eval()
        if self._dtype is not torch.float32 and lm.device.type == "cpu":
            policy.multiple = ONEDNN_MULTIPLE
        return _Model(policy, tokenizer_of(self.source), self.source, dict(self.config.chat_template_kwargs))

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """Those that are drawn alike are drawn together."""
        started = time.monotonic()
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, ask in enumerate(asks):
            drawn = not ask.logprobs or ask.question.reasoned
            alike[(ask.logprobs, ask.question.reasoned, *((ask.seed, ask.temperature) if drawn else ()))].append(i)
        for group in alike.values():
            yield from zip(group, self._answered([asks[i] for i in group]), strict=True)
        self.usage.answers += len(asks)
        self.usage.seconds += time.monotonic() - started

    def _answered(self, asks: Sequence[Ask]) -> list[Reply]:
        model, first = self._model, asks[0]
        prompts = [model.prompt(ask.question.text) for ask in asks]
        room = first.max_new_tokens + model.room_for_verdict
        replies = [_too_long(prompt, model.room - room) for prompt in prompts]
        fitting = [i for i, reply in enumerate(replies) if reply is None]
        written = [""] * len(asks)
        if fitting and (first.question.reasoned or not first.logprobs):
            texts = model.write([prompts[i] for i in fitting], first)
            written = dict(zip(fitting, texts, strict=True))  # type: ignore[assignment]
            self.usage.written_tokens += sum(len(model.encoder.ids(text)) for text in texts)
        self.usage.prompt_tokens += sum(len(prompts[i]) for i in fitting)
        read = [model.vote(asks[i].question, written[i]) for i in fitting] if not first.logprobs else []
        if first.logprobs:
            questions = [(prompts[i], asks[i].question, written[i]) for i in fitting]
            read = model.weigh(questions, self.config.batch_tokens)
        for i, reply in zip(fitting, read, strict=True):
            replies[i] = reply
        return [reply for reply in replies if reply is not None]


@dataclass(frozen=True)
class _Model:
    """A loaded judge, and how it reads a question."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    source: Source
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer)

    @cached_property
    def encoding(self) -> Encoding:
        places = places_in_saved(self.source.adapters, self.tokenizer)
        return Encoding(chat_template_kwargs=self.chat_template_kwargs, **places)

    @property
    def room(self) -> int:
        text = self.policy.lm.config.get_text_config()
        return getattr(text, "max_position_embeddings", None) or ROOM

    room_for_verdict = 32
    """Tokens of what a verdict begins with, and of the verdict."""

    def prompt(self, text: str) -> list[int]:
        """Of a user's turn, up to where the answer begins; without a chat template of a text that is gone on with."""
        try:
            if self.tokenizer.chat_template:
                return chat_prompt([{"role": "user", "content": text}], self.tokenizer, self.encoding)
            return raw_prompt(f"{text}\n\n", self.tokenizer, self.encoding)
        except Unusable as error:
            raise UserError(error.what, where=self.source.path, fix=error.fix) from error

    def write(self, prompts: Sequence[list[int]], ask: Ask) -> list[str]:
        answers = generate(
            self.policy.lm,
            prompts,
            max_new_tokens=ask.max_new_tokens,
            stop_ids=stop_ids(self.policy.lm, self.tokenizer.eos_token_id),
            pad_token_id=self.tokenizer.pad_token_id or 0,
            temperature=ask.temperature,
            seed=ask.seed,
        )
        return [str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in answers]

    def vote(self, question: Question, text: str) -> Reply:
        choice = verdicts.read(text, question.verdict, question.choices, reasoned=question.reasoned)
        shares = None if choice is None else tuple(verdicts.certain(choice, len(question.choices)))
        return Reply(text, shares)

    def weigh(self, asked: Sequence[tuple[list[int], Question, str]], batch_tokens: int) -> list[Reply]:
        """
        Args:
            asked: tokens of the question, the question, and the reasons that were written.
        """
        weighings = [self._weighing(*each) for each in asked]
        wanted = [each for weighing in weighings for each in weighing.wanted]
        pad = self.tokenizer.pad_token_id or 0
        found = iter(logprobs(self.policy, wanted, batch_tokens=batch_tokens, pad_token_id=pad))
        return [weighing.reply([next(found) for _ in weighing.wanted]) for weighing in weighings]

    def _weighing(self, prompt: list[int], question: Question, text: str) -> _Weighing:
        reasons = _without_verdict(text, question.verdict)
        lead = f"{reasons}\n\n{question.verdict}" if reasons else question.verdict
        ids = [tuple(self.encoder.ids_after(lead, f" {choice}")) for choice in question.choices]
        return _Weighing([*prompt, *self.encoder.ids_after("\n", lead)], Verdicts(tuple(ids)), text)


@dataclass(frozen=True, slots=True)
class _Weighing:
    """A question with what a verdict begins with, and the verdicts that are weighed behind it."""

    ids: list[int]
    verdicts: Verdicts
    text: str

    @property
    def keys(self) -> list[list[tuple[tuple[int, ...], int]]]:
        """Of each sequence what is asked of it: (what has been said of a verdict, next token)."""
        all_keys = [(said, token) for said, tokens in self.verdicts.next_tokens.items() for token in tokens]
        return [
            [key for key in all_keys if key[0] == sequence[: len(key[0])]] for sequence in self.verdicts.sequences
        ]

    @property
    def wanted(self) -> list[Wanted]:
        last = len(self.ids) - 1
        return [
            Wanted([*self.ids, *sequence], [last + len(said) for said, _ in keys], [token for _, token in keys])
            for sequence, keys in zip(self.verdicts.sequences, self.keys, strict=True)
        ]

    def reply(self, found: Sequence[Sequence[float]]) -> Reply:
        known = {
            key: value
            for keys, values in zip(self.keys, found, strict=True)
            for key, value in zip(keys, values, strict=True)
        }
        shares, mass = self.verdicts.probabilities(known)
        return Reply(self.text, tuple(shares), mass)


def _without_verdict(text: str, verdict: str) -> str:
    """Reasons, up to where the model began to give its verdict."""
    lines = text.splitlines()
    while lines and (not lines[-1].strip() or verdict.lower() in lines[-1].lower()):
        lines.pop()
    return "\n".join(lines).strip()


def _too_long(prompt: Sequence[int], room: int) -> Reply | None:
    if len(prompt) <= room:
        return None
    return Reply("", None, problem=f"the question has {len(prompt):,} tokens, and the judge has room for {room:,}")
