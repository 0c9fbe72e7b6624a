"""A classifier or a reward model as judge: no words, one forward for each answer.

A reward model (one number for a whole answer) reads prompt and answer as it was trained to. A classifier of texts
reads a text alone: the answer or, where the answer goes on with the prompt, both as one; its score is the log-odds of
`judge.label`. Of two answers the one with the higher score is better, by the logistic function of the difference
(Bradley and Terry, 1952): for a reward model what it was trained on, for a classifier a convention.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunecli.config.data import Overlong, Side
from tunecli.config.errors import UserError
from tunecli.config.judge import RewardModelJudgeConfig, model_of
from tunecli.config.model import Attention
from tunecli.config.nearest import did_you_mean
from tunecli.config.stage import ProblemType, Rows, Task
from tunecli.data.examples import Labelled, Messages, PromptCompletion, Scored, Unusable
from tunecli.data.templates import apply_chat_template_choice
from tunecli.data.tokenize import tokenize_many
from tunecli.data.tokens import Encoding
from tunecli.judging.asking import Counts
from tunecli.judging.backend import Reply, Usage
from tunecli.judging.cache import VERSION, Cache
from tunecli.judging.fingerprint import fingerprint
from tunecli.judging.judge import Comparison, Score, compared
from tunecli.judging.next_tokens import Wanted, batches
from tunecli.judging.questions import Answered, Compared, digest
from tunecli.models.classifier import Classifier
from tunecli.models.load import Head
from tunecli.models.positions import readable
from tunecli.models.self_test import choose_policy
from tunecli.peft_methods.loading import base_task, head_of, load_base, require_one, stored_config, tokenizer_of
from tunecli.peft_methods.saving import load_adapters
from tunecli.peft_methods.source import Source, find_source
from tunecli.peft_methods.token_ids import places_in_saved


class RewardModelJudge:
    scores = True
    cost: float | None = None

    def __init__(self, config: RewardModelJudgeConfig, cache: Cache) -> None:
        """
        Raises:
            UserError: there is no such model, it has no head for texts, or not this label.
        """
        self.config = config
        self.cache = cache
        self.source, self.head = _source(config)
        self.name = config.path if config.label is None else f"{config.path} ({config.label})"
        self.usage = Usage()
        self.counts = Counts()

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {
            "backend": "reward_model",
            "model": fingerprint(self.source),
            "label": self.config.label,
            "max_length": self.config.max_length,
        }

    def compare(self, pairs: Sequence[Compared]) -> list[Comparison]:
        """There is no order in which they are asked."""
        items = [Answered(pair.prompt, answer) for pair in pairs for answer in (pair.first, pair.second)]
        found = self.score(items)
        return [compared(first, second) for first, second in zip(found[::2], found[1::2], strict=True)]

    def score(self, items: Sequence[Answered]) -> list[Score]:
        unique = list(dict.fromkeys(items))
        identity = digest([VERSION, self.identity])
        keys = [digest([identity, item.prompt, item.answer]) for item in unique]
        found = self.cache.get(keys)
        missing = [i for i, key in enumerate(keys) if key not in found]
        self.counts.questions += len(unique)
        self.counts.answers += len(unique)
        self.counts.from_cache += len(unique) - len(missing)
        if missing:
            new = self._replies([unique[i] for i in missing])
            kept = [(keys[i], reply) for i, reply in zip(missing, new, strict=True)]
            self.cache.put(kept)
            found |= dict(kept)
        told = {item: _score(found[key]) for item, key in zip(unique, keys, strict=True)}
        self.counts.failed += sum(score.value is None for score in told.values())
        return [told[item] for item in items]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = tokenizer_of(self.source)
        run = self.source.run
        if run is not None:
            apply_chat_template_choice(tokenizer, run.data.chat_template)
        return tokenizer

    @cached_property
    def _policy(self) -> Classifier:
        lm = load_base(self.source)
        if lm.new_weights and not self.source.adapters:
            fix = "a model whose head was trained and saved"
            raise UserError("its head has no weights", where=self.source.path, fix=fix)
        lm.config.pad_token_id = self._tokenizer.pad_token_id
        policy = choose_policy(lm, Attention.auto, Task.sequence_classification).policy
        assert isinstance(policy, Classifier)
        load_adapters(lm, self.source.adapters)
        policy.eval()
        return policy

    @cached_property
    def _encoding(self) -> Encoding:
        """Of what was trained as in training, but for what is too long: an answer's end counts most."""
        found = Encoding(
            task=Task.sequence_classification,
            rows=Rows.judged,
            problem_type=ProblemType.regression,
            max_length=readable(self.config.max_length, self.source.base),
            overlong=Overlong.truncate,
            truncation_side=Side.left,
            **places_in_saved(self.source.adapters, self._tokenizer),
        )
        run = self.source.run
        if run is None:
            return found
        names = ("system", "system_prompt", "thinking", "chat_template_kwargs")
        return replace(found, **{name: getattr(run.data, name) for name in names})

    def _example(self, item: Answered) -> Scored | Labelled:
        if self.config.label is not None:
            before = item.prompt if isinstance(item.prompt, str) else ""
            return Labelled(before + item.answer, labels=("0",))  # as it is read in training
        if isinstance(item.prompt, str):
            return Scored(PromptCompletion(item.prompt, item.answer), 0.0)
        turns = [{"role": role, "content": text} for role, text in item.prompt]
        return Scored(Messages([*turns, {"role": "assistant", "content": item.answer}], context=len(turns)), 0.0)

    def _replies(self, items: Sequence[Answered]) -> list[Reply]:
        started = time.monotonic()
        read = tokenize_many([self._example(item) for item in items], self._tokenizer, self._encoding)
        ids = [None if isinstance(each, Unusable) else each[0].input_ids for each in read]
        values = iter(self._values([each for each in ids if each is not None]))
        self.usage.answers += len(items)
        self.usage.prompt_tokens += sum(len(each) for each in ids if each is not None)
        self.usage.seconds += time.monotonic() - started
        return [
            Reply("", None, problem=each.what) if isinstance(each, Unusable) else Reply(repr(next(values)), None)
            for each in read
        ]

    @torch.no_grad()
    def _values(self, sequences: Sequence[list[int]]) -> list[float]:
        policy, found = self._policy, [0.0] * len(sequences)
        wanted = [Wanted(ids, [len(ids) - 1 if policy.looks_at_last else 0], [0]) for ids in sequences]
        pad = self._tokenizer.pad_token_id or 0
        typed = getattr(policy.lm.config, "type_vocab_size", 0) > 1
        device = next(policy.parameters()).device
        for group, batch in batches(
            wanted, packed=policy.packed, batch_tokens=self.config.batch_tokens, pad_token_id=pad
        ):
            if typed:
                batch = replace(batch, token_type_ids=torch.zeros_like(batch.input_ids))
            for i, logits in zip(group, policy(batch.to(device)).float().cpu(), strict=True):
                found[i] = self._value(logits)
        return found

    def _value(self, logits: Tensor) -> float:
        """`logits`: [labels]"""
        if self.config.label is None:
            return float(logits[0])
        place = self.head.labels.index(self.config.label)
        if self.head.problem_type is ProblemType.multi_label:
            return float(logits[place])
        others = torch.cat([logits[:place], logits[place + 1 :]])
        return float(logits[place] - others.logsumexp(0))


def _source(config: RewardModelJudgeConfig) -> tuple[Source, Head]:
    source = find_source(config.path)
    require_one(source)
    if not source.adapters and source.run is None:
        source = replace(source, base=replace(model_of(config), path=source.base.path))
    stored = stored_config(source)
    if stored is None or base_task(source) is not Task.sequence_classification:
        what = f"is a model for {base_task(source).value}, and no classifier of texts"
        raise UserError(what, where=config.path, fix="judge=local asks language models")
    head = head_of(stored)
    labels = ", ".join(head.labels)
    if config.label is None and len(head.labels) > 1:
        what = f"is not said, and {config.path} knows {labels}"
        raise UserError(what, where="judge.label", fix=f"judge.label={head.labels[-1]}, if that is what is good")
    if config.label is not None and (config.label not in head.labels or len(head.labels) < 2):
        what = f"{config.path} knows no label {config.label!r}"
        several = f"{did_you_mean(config.label, head.labels)}one of {labels}"
        fix = several if len(head.labels) > 1 else "judge.label=null: it gives one number"
        raise UserError(what, where="judge.label", fix=fix)
    return source, head


def _score(reply: Reply) -> Score:
    if reply.problem:
        return Score(None, problem=reply.problem)
    value = float(reply.text)
    return Score(value) if math.isfinite(value) else Score(None, problem="the score is no finite number")
