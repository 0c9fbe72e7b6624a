"""What the `evaluation` section asks for, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from tunecli.config.evaluation import EvaluationConfig
from tunecli.data.batching import Batching, Examples
from tunecli.data.text_encoder import TextEncoder
from tunecli.engine.stage import Evaluation
from tunecli.evaluation import texts
from tunecli.evaluation.answers import Question, answer_all, prompt_of, question, right_choices, text_of
from tunecli.evaluation.ensemble import most_votes, same_questions
from tunecli.models.generate import generate, stop_ids
from tunecli.models.self_test import LanguageModel

TOGETHER = 32
"""Questions that each rank answers between two looks at whether to go on."""
SHOWN = 5
"""Answered validation questions that are kept as samples while a model is trained."""

Sample = dict[str, str]
"""`prompt`, `answer` and, where there is a right answer, `expected`."""


class Abandoned(Exception):
    """The evaluation was asked not to go on."""


@dataclass(slots=True)
class Evaluator:
    config: EvaluationConfig
    tokenizer: PreTrainedTokenizerBase
    validation: Examples | None
    prompts: Sequence[list[int]]
    """token ids of `config.prompts`, as the model is asked"""
    batching: Batching
    accelerator: Accelerator
    shown: int = SHOWN
    """answered validation questions that are kept as samples"""

    def __call__(self, policy: LanguageModel, proceed: Callable[[float], bool]) -> Evaluation:
        """Metrics of generated texts, without `eval/` in front; whether each validation example is right; samples.

        Raises:
            Abandoned: `proceed`, which is told the share done and asked by all ranks together, said no.
        """
        config = self.config
        metrics: dict[str, float] = {}
        right: dict[str, list[bool]] = {}
        samples: list[Sample] = []
        groups = same_questions(self.validation) if self.validation is not None else []
        if some := groups[: config.generated]:
            answers = self._answered(policy, some, proceed)
            expected = [text_of(self._questions(some, [i])[0][0].answer, self.tokenizer) for i in range(len(some))]
            metrics = _text_metrics(config, answers, expected)
            if number := config.exact_match:
                pairs = zip(answers[:number], expected[:number], strict=True)
                right["exact_match"] = [answer == wanted for answer, wanted in pairs]
            samples = self._shown(some, answers, expected)
        if groups and config.choices:
            right["choice_accuracy"] = self._right_choices(policy, groups, proceed)
        return Evaluation(metrics, right, [*samples, *self._answered_prompts(policy)])

    def _answered(
        self, policy: LanguageModel, groups: Sequence[Sequence[int]], proceed: Callable[[float], bool]
    ) -> list[str]:
        """The answer to each question, on every rank."""
        said: dict[int, str] = {}
        for chunk in self._chunks(groups, proceed):
            asked = self._questions(groups, chunk)
            flat = iter(self._answers(policy, [each for group in asked for each in group]))
            for i, group in zip(chunk, asked, strict=True):
                said[i] = most_votes([next(flat) for _ in group])
        if self.accelerator.num_processes > 1:
            said = dict(gather_object(list(said.items())))
        return [said[i] for i in range(len(groups))]

    def _right_choices(
        self, policy: LanguageModel, groups: Sequence[Sequence[int]], proceed: Callable[[float], bool]
    ) -> list[bool]:
        """Whether the right answer to each question is the most likely of the choices."""
        right = torch.zeros(len(groups), device=self.accelerator.device)
        for chunk in self._chunks(groups, proceed):
            right[chunk] = torch.tensor(self._choices(policy, groups, chunk), dtype=right.dtype, device=right.device)
        return self.accelerator.reduce(right, "sum").bool().tolist()

    def _chunks(self, groups: Sequence[Sequence[int]], proceed: Callable[[float], bool]) -> Iterator[list[int]]:
        """Numbers of the questions that this rank answers between two looks: on each rank as many chunks."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        mine = self._by_length(groups, range(rank, len(groups), ranks))
        for start in range(0, -(-len(groups) // ranks), TOGETHER):
            if not proceed(start * ranks / len(groups)):
                raise Abandoned
            yield mine[start : start + TOGETHER]

    def _by_length(self, groups: Sequence[Sequence[int]], numbers: Iterable[int]) -> list[int]:
        """Questions of about the same length come together, as shorter ones are padded."""
        assert self.validation is not None
        lengths = self.validation.lengths
        return sorted(numbers, key=lambda i: (-int(lengths[groups[i][0]]), i))

    def _shown(
        self, groups: Sequence[Sequence[int]], answers: Sequence[str], expected: Sequence[str]
    ) -> list[Sample]:
        """The first answers."""
        first = range(min(self.shown, len(groups)))
        encoder = TextEncoder(self.tokenizer)
        prompts = [prompt_of(self._questions(groups, [i])[0][0].prompt, encoder) for i in first]
        return [
            {"prompt": prompt, "answer": answer, "expected": right}
            for prompt, answer, right in zip(prompts, answers, expected, strict=False)
        ]

    def _answers(self, policy: LanguageModel, questions: list[Question]) -> list[str]:
        if not questions:
            return []
        limits = {"max_new_tokens": self.config.max_new_tokens, "num_beams": self.config.num_beams}
        return answer_all(policy, self.tokenizer, questions, **limits)

    def _choices(self, policy: LanguageModel, groups: Sequence[Sequence[int]], chunk: list[int]) -> list[bool]:
        alone = replace(self.batching, num_processes=1, process_index=0)
        asked = self._questions(groups, chunk)
        return right_choices(policy, self.tokenizer, asked, self.config.choices, alone, self.config.combine)

    def _questions(self, groups: Sequence[Sequence[int]], chunk: list[int]) -> list[list[Question]]:
        assert self.validation is not None
        return [[question(self.validation, i) for i in groups[number]] for number in chunk]

    def _answered_prompts(self, policy: LanguageModel) -> list[Sample]:
        if not self.prompts or not self.accelerator.is_main_process:
            return []
        answers = generate(
            policy.lm,
            self.prompts,
            max_new_tokens=self.config.max_new_tokens,
            stop_ids=stop_ids(policy.lm, self.tokenizer.eos_token_id),
            pad_token_id=self.tokenizer.pad_token_id or 0,
            temperature=self.config.temperature,
        )
        return [
            {"prompt": prompt, "answer": text_of(answer, self.tokenizer)}
            for prompt, answer in zip(self.config.prompts, answers, strict=True)
        ]


def _text_metrics(config: EvaluationConfig, answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    if number := config.rouge:
        found |= texts.rouge(answers[:number], expected[:number])
    if number := config.bleu:
        found |= texts.bleu(answers[:number], expected[:number], config.bleu_tokenize)
    if number := config.chrf:
        found |= texts.chrf(answers[:number], expected[:number])
    return found
