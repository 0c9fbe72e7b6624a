"""Answers to the questions of a data set: generated and compared with the right one, or weighed against the others.

Prompt and right answer are cut out of the tokenized example, so that the model is asked exactly what it was trained
on. `exact_match` compares texts without the white space around them; `choice_accuracy` is the share of examples whose
right answer, end-of-turn token included, is more likely than every other choice (as in Brown et al., 2020, section
2.4, without their normalisations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunecli.config.errors import UserError
from tunecli.config.evaluation import Combine
from tunecli.data.batching import Batching, Examples, microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Window
from tunecli.data.text_encoder import TextEncoder
from tunecli.evaluation.ensemble import best_choice
from tunecli.models.generate import generate, stop_ids
from tunecli.models.self_test import LanguageModel

LOOKED_AT = 200
"""Examples that tell whether the choices are answers at all."""
TOGETHER = 64
"""Candidate answers that are weighed in one go."""


@dataclass(frozen=True, slots=True)
class Question:
    prompt: list[int]
    """token ids up to the last answer"""
    answer: list[int]
    """token ids of the last answer, with the tokens that end it"""
    adapter: int = -1
    """which adapter it is for; -1: all of them"""


def question(examples: Examples, index: int) -> Question:
    """The last answer of an example, and what comes before it."""
    example = examples[index]
    ids, trained = example.input_ids, example.trained
    end = int(trained.nonzero()[-1]) + 1
    untrained = (~trained[:end]).nonzero()
    start = int(untrained[-1]) + 1 if len(untrained) else 0
    return Question(ids[:start].tolist(), ids[start:end].tolist(), int(examples.adapters[index]))


def text_of(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def prompt_of(tokens: Sequence[int], encoder: TextEncoder) -> str:
    """As the model sees it, but for what the tokenizer puts around every text: `</s>` behind a source, say."""
    opening, closing = encoder.ends
    end = len(tokens) - len(closing)
    inner = tokens[:end] if closing and list(tokens[end:]) == closing else tokens
    start = len(opening)
    return encoder.tokenizer.decode(inner[start:] if list(inner[:start]) == opening else inner)


def answer_all(
    policy: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_new_tokens: int,
    num_beams: int = 1,
) -> list[str]:
    """The most likely answer to each question: token by token, or of those that `num_beams` beams found."""
    stops = stop_ids(policy.lm, tokenizer.eos_token_id)
    made = generate(
        policy.lm,
        [question.prompt for question in questions],
        max_new_tokens=max_new_tokens,
        stop_ids=stops,
        pad_token_id=tokenizer.pad_token_id or 0,
        adapters=[question.adapter for question in questions] if questions[0].adapter >= 0 else None,
        num_beams=num_beams,
    )
    return [text_of(answer, tokenizer) for answer in made]


def check_choices(examples: Examples, tokenizer: PreTrainedTokenizerBase, choices: Sequence[str]) -> None:
    """Raises UserError if none of the first examples is answered by any of the choices."""
    answers = [text_of(question(examples, i).answer, tokenizer) for i in range(min(len(examples), LOOKED_AT))]
    if not set(answers) & set(choices):
        seen = ", ".join(repr(answer[:40]) for answer in dict.fromkeys(answers[:3]))
        raise UserError(
            f"none of {', '.join(choices)} is the answer of any validation example; their answers are {seen} ...",
            where="evaluation.choices",
            fix="the answers as they stand in the data, with their capitals",
        )


@torch.no_grad()
def right_choices(
    policy: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Sequence[Question]],
    choices: Sequence[str],
    batching: Batching,
    combine: Combine = Combine.mean,
) -> list[bool]:
    """Whether the right answer of each group is the most likely of `choices`; a question whose answer is none of them
    counts as wrong.

    Args:
        groups: the same question to several adapters, or alone.
    """
    flat = [question for group in groups for question in group]
    scores = _choice_scores(policy, tokenizer, flat, choices, batching)
    right, start = [], 0
    for group in groups:
        answer = text_of(group[0].answer, tokenizer)
        chosen = best_choice(scores[start : start + len(group)], combine)
        right.append(answer in choices and chosen == choices.index(answer))
        start += len(group)
    return right


def _choice_scores(
    policy: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    choices: Sequence[str],
    batching: Batching,
) -> Tensor:
    """[questions, choices] fp32: log-probability of each choice."""
    flat = Window(["choices"])
    for question in questions:
        for candidate in _candidates(question, choices, tokenizer):
            flat.examples.append(candidate)
            flat.sources.append(0)
            flat.origins.append("choice")
            flat.adapters.append(question.adapter)
    return _log_likelihoods(policy, flat, batching).view(len(questions), len(choices))


def _candidates(question: Question, choices: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The prompt with each choice and the end of the right answer; the choice's tokens are the trained ones."""
    special = set(tokenizer.all_special_ids)
    first, content = 0, len(question.answer)
    while content and question.answer[content - 1] in special:
        content -= 1
    while first < content and question.answer[first] in special:
        first += 1
    opening, end = question.answer[:first], question.answer[content:]
    right = tokenizer.decode(question.answer[first:content])
    space = right[: len(right) - len(right.lstrip())]
    found = []
    for choice in choices:
        ids = [*opening, *tokenizer(space + choice, add_special_tokens=False)["input_ids"], *end]
        if choice == text_of(question.answer, tokenizer):
            ids = question.answer  # as it was trained, should the tokenizer join it otherwise
        start, whole = len(question.prompt), [*question.prompt, *ids]
        found.append(Encoded.of(np.array(whole), np.array([start, len(whole)]), parts=(start,)))
    return found


def _log_likelihoods(policy: LanguageModel, examples: Window, batching: Batching) -> Tensor:
    """[examples] fp32: log-probability of the trained tokens of each."""
    scores = torch.zeros(len(examples))
    device = next(policy.parameters()).device
    for start in range(0, len(examples), TOGETHER):
        for batch in microbatches(examples, range(start, min(start + TOGETHER, len(examples))), batching):
            logprobs = policy(batch.to(device)).float().cpu()
            row = torch.repeat_interleave(
                torch.tensor(batch.rows), torch.tensor([int(examples[i].trained.sum()) for i in batch.rows])
            )
            scores.index_add_(0, row, logprobs)
    return scores
