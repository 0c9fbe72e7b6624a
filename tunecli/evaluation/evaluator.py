"""What the `evaluation` section asks for, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from tunecli.config.evaluation import EvaluationConfig
from tunecli.data.batching import Batching, Examples
from tunecli.evaluation.answers import Question, answer_all, question, right_choices, text_of
from tunecli.evaluation.ensemble import most_votes, same_questions
from tunecli.models.generate import generate, stop_ids
from tunecli.models.policy import Policy

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
    _samples: dict[int, Sample] = field(default_factory=dict)

    def __call__(
        self, policy: Policy, proceed: Callable[[float], bool]
    ) -> tuple[dict[str, list[bool]], list[Sample]]:
        """Metric -> whether each validation example is right, and samples, which only the main process has in full.

        Raises:
            Abandoned: `proceed`, which is told the share done and asked by all ranks together, said no.
        """
        self._samples = {}
        right: dict[str, list[bool]] = {}
        groups = same_questions(self.validation) if self.validation is not None else []
        if groups and self.config.exact_match:
            some = groups[: self.config.exact_match]
            right["exact_match"] = self._judged(some, proceed, lambda chunk: self._matches(policy, some, chunk))
        if groups and self.config.choices:
            right["choice_accuracy"] = self._judged(
                groups, proceed, lambda chunk: self._choices(policy, groups, chunk)
            )
        return right, [*self._gathered_samples(), *self._answered_prompts(policy)]

    def _gathered_samples(self) -> list[Sample]:
        samples = list(self._samples.items())
        if self.accelerator.num_processes > 1:
            samples = gather_object(samples)
        return [sample for _, sample in sorted(samples, key=lambda item: item[0])]

    def _judged(
        self,
        groups: Sequence[Sequence[int]],
        proceed: Callable[[float], bool],
        judge: Callable[[list[int]], list[bool]],
    ) -> list[bool]:
        """Whether each group of validation examples is answered rightly. Ranks take as many chunks as each other."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        mine = self._by_length(groups, range(rank, len(groups), ranks))
        right = torch.zeros(len(groups), device=self.accelerator.device)
        for start in range(0, -(-len(groups) // ranks), TOGETHER):
            if not proceed(start * ranks / len(groups)):
                raise Abandoned
            chunk = mine[start : start + TOGETHER]
            right[chunk] = torch.tensor(judge(chunk), dtype=right.dtype, device=right.device)
        return self.accelerator.reduce(right, "sum").bool().tolist()

    def _by_length(self, groups: Sequence[Sequence[int]], numbers: Iterable[int]) -> list[int]:
        """Questions of about the same length come together, as shorter ones are padded."""
        assert self.validation is not None
        lengths = self.validation.lengths
        return sorted(numbers, key=lambda i: (-int(lengths[groups[i][0]]), i))

    def _matches(self, policy: Policy, groups: Sequence[Sequence[int]], chunk: list[int]) -> list[bool]:
        asked = self._questions(groups, chunk)
        said = iter(self._answers(policy, [each for group in asked for each in group]))
        right = []
        for i, group in zip(chunk, asked, strict=True):
            answer = most_votes([next(said) for _ in group])
            expected = text_of(group[0].answer, self.tokenizer)
            if i < self.shown:
                prompt = self._text(group[0].prompt)
                self._samples[i] = {"prompt": prompt, "answer": answer, "expected": expected}
            right.append(answer == expected)
        return right

    def _answers(self, policy: Policy, questions: list[Question]) -> list[str]:
        return answer_all(policy, self.tokenizer, questions, self.config.max_new_tokens) if questions else []

    def _choices(self, policy: Policy, groups: Sequence[Sequence[int]], chunk: list[int]) -> list[bool]:
        alone = replace(self.batching, num_processes=1, process_index=0)
        asked = self._questions(groups, chunk)
        return right_choices(policy, self.tokenizer, asked, self.config.choices, alone, self.config.combine)

    def _questions(self, groups: Sequence[Sequence[int]], chunk: list[int]) -> list[list[Question]]:
        assert self.validation is not None
        return [[question(self.validation, i) for i in groups[number]] for number in chunk]

    def _answered_prompts(self, policy: Policy) -> list[Sample]:
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

    def _text(self, prompt: list[int]) -> str:
        return self.tokenizer.decode(prompt)
