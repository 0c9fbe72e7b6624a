"""Answers that a policy draws, what they are worth, and how likely policy and reference find each of their tokens.

Every rank answers, scores and weighs its share and then knows all: what is computed of them afterwards needs no more
communication and is the same on all ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tunecli.data.batching import Batching, Examples, microbatches
from tunecli.data.encoded import Encoded
from tunecli.engine.batch import Batch
from tunecli.models.generate import Sampling, sample
from tunecli.models.policy import Detail
from tunecli.peft_methods.reference import Reference
from tunecli.stages.setting import Scorer


@dataclass(slots=True)
class Episodes:
    """Answers to prompts; those to the same prompt stand together. Lists have one entry for each answer."""

    prompts: list[list[int]] = field(default_factory=list)
    """token ids"""
    asked: list[Any] = field(default_factory=list)
    """texts or messages"""
    columns: list[dict[str, Any]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    """token ids, with the stop token"""
    ended: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    """name of a reward -> its scores"""
    logprobs: list[list[float]] = field(default_factory=list)
    """of each token of each answer, under the policy that drew it"""
    reference: list[list[float]] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    """empty where there is no value head"""
    advantages: list[list[float]] = field(default_factory=list)
    returns: list[list[float]] = field(default_factory=list)
    """empty as `values`"""

    names = ["answers"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Encoded:
        start, ids = len(self.prompts[index]), np.array([*self.prompts[index], *self.answers[index]])
        return Encoded.of(ids, np.array([start, len(ids)], np.int32), parts=(start,))

    @property
    def lengths(self) -> list[int]:
        return [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    @property
    def sources(self) -> list[int]:
        return [0] * len(self)

    @property
    def adapters(self) -> list[int]:
        return [-1] * len(self)

    def origin(self, index: int) -> str:
        return f"{self.origins[index]}: {self.texts[index]!r}"

    def padded(self, rows: list[list[float]]) -> Tensor:
        """[answers, longest] float64, padded with 0 on the right."""
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row).double() for row in rows], batch_first=True)

    @property
    def mask(self) -> Tensor:
        """[answers, longest] bool: whether there is a token."""
        lengths = torch.tensor([len(answer) for answer in self.answers])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def unpadded(self, table: Tensor) -> list[list[float]]:
        return [row[: len(answer)] for row, answer in zip(table.float().tolist(), self.answers, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


def ask(examples: Examples, indices: Sequence[int], num_samples: int) -> Episodes:
    """The prompts among `examples` at `indices`, each as often as it is to be answered."""
    episodes = Episodes()
    for index in np.repeat(np.asarray(indices, np.int64), num_samples).tolist():
        example = examples[index]
        columns = json.loads(example.columns)
        episodes.asked.append(columns.pop("prompt"))
        episodes.columns.append(columns)
        episodes.prompts.append(example.input_ids.tolist())
        episodes.origins.append(examples.origin(index))
    return episodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Roller:
    """Fills `Episodes` in."""

    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    batching: Batching
    sampling: Sampling
    reference: Reference
    scorer: Scorer
    detail: Detail

    def answer(self, model: nn.Module, episodes: Episodes, *, seed: int, first: int) -> dict[str, float]:
        """Answers, texts and scores.

        Args:
            first: number of the first answer; with the seed it decides what is drawn.

        Returns:
            Seconds that drawing and scoring took.
        """
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = list(range(rank, len(episodes), ranks))
        started = time.perf_counter()
        with self.accelerator.autocast():
            answers = sample(
                self.accelerator.unwrap_model(model).lm,
                [episodes.prompts[i] for i in mine],
                self.sampling,
                pad_token_id=self.tokenizer.pad_token_id or 0,
                seed=seed,
                numbers=[first + i for i in mine],
            )
        drawn = time.perf_counter()
        texts = [self._text(each.tokens, ended=each.ended) for each in answers]
        scores = self.scorer([episodes.asked[i] for i in mine], texts, [episodes.columns[i] for i in mine])
        scored = time.perf_counter()
        own = [
            (i, each.tokens, each.ended, text, total, {name: part[place] for name, part in scores.parts.items()})
            for place, (i, each, text, total) in enumerate(zip(mine, answers, texts, scores.total, strict=True))
        ]
        everyone = sorted(self._gathered(own), key=lambda each: each[0])
        _, episodes.answers, episodes.ended, episodes.texts, episodes.scores, parts = map(
            list, zip(*everyone, strict=True)
        )
        episodes.parts = {name: [each[name] for each in parts] for name in parts[0]}
        return {"time/rollout": drawn - started, "time/score": scored - drawn}

    def weigh(self, model: nn.Module, episodes: Episodes, steps: Sequence[Sequence[int]]) -> dict[str, float]:
        """How likely policy and reference find each token, and values.

        Args:
            steps: indices of the answers that are trained on together at first. In the same micro-batches as there,
                so that not even rounding makes the new policy another one than the old.

        Returns:
            Seconds that it took.
        """
        started = time.perf_counter()
        batches = [batch for step in steps for batch in microbatches(episodes, step, self.batching)]
        with torch.no_grad():
            found = {
                row: values
                for batch in batches
                for row, *values in self._details(model, episodes, batch, self.detail)
            }
            only = replace(self.detail, values=False)
            with self.reference.on():
                reference = {
                    row: one for batch in batches for row, one, _ in self._details(model, episodes, batch, only)
                }
        own = [(row, logprobs, reference[row], values) for row, (logprobs, values) in found.items()]
        everyone = sorted(self._gathered(own), key=lambda each: each[0])
        _, episodes.logprobs, episodes.reference, values = map(list, zip(*everyone, strict=True))
        episodes.values = values if values[0] else []
        return {"time/logprobs": time.perf_counter() - started}

    def batches(self, episodes: Episodes, indices: Sequence[int]) -> list[Batch]:
        """Of one optimizer step, with all that is known of each token."""
        return [_with_tokens(batch, episodes) for batch in microbatches(episodes, indices, self.batching)]

    def _details(
        self, model: nn.Module, episodes: Episodes, batch: Batch, detail: Detail
    ) -> Iterator[tuple[int, list[float], list[float]]]:
        """Index, log-probabilities and values of each answer in a micro-batch."""
        found = model(batch.to(self.accelerator.device), detail)
        if not batch.rows:  # a filler's work is for nothing, but every rank has as many forwards
            return
        lengths = [len(episodes.answers[row]) for row in batch.rows]
        logprobs = found.logprobs.float().cpu().split(lengths)
        values = [[] for _ in lengths]
        if found.values is not None:
            values = [each.tolist() for each in found.values.float().cpu().split(lengths)]
        for row, own, value in zip(batch.rows, logprobs, values, strict=True):
            yield row, own.tolist(), value

    def _gathered(self, own: list[Any]) -> list[Any]:
        return own if self.accelerator.num_processes == 1 else gather_object(own)

    def _text(self, tokens: list[int], *, ended: bool) -> str:
        """Without the token that ended it."""
        return self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)


def _with_tokens(batch: Batch, episodes: Episodes) -> Batch:
    columns = {
        "old_logprobs": episodes.logprobs,
        "reference_logprobs": episodes.reference,
        "old_values": episodes.values,
        "advantages": episodes.advantages,
        "returns": episodes.returns,
    }
    if not batch.rows:
        zeros = torch.zeros(len(batch.weights))
        return replace(batch, **{name: zeros for name, rows in columns.items() if rows})
    return replace(
        batch,
        **{
            name: torch.tensor([value for row in batch.rows for value in rows[row]])
            for name, rows in columns.items()
            if rows
        },
    )
