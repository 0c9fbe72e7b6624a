"""Answers of a language model to prompts that are tokens already, many at a time; an encoder-decoder's to sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from tunecli.models.attention import ADAPTER_OF_ROW
from tunecli.ops.sampling import draw

BATCH_TOKENS = 4096
"""Prompt tokens that are computed together, padding included."""


def stop_ids(lm: PreTrainedModel, eos_token_id: int | None) -> list[int]:
    """The tokens that end an answer: the tokenizer's end-of-text token and those of the model's generation config."""
    own = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    found = [eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(token for token in found if token is not None))


@torch.no_grad()
def generate(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_token_id: int,
    temperature: float = 0.0,
    seed: int = 0,
    adapters: Sequence[int] | None = None,
    num_beams: int = 1,
) -> list[list[int]]:
    """The answer to each prompt, in their order, without the stop token that ended it.

    `adapters`: which one each prompt is for, where several are chosen from by row.

    Prompts of about the same length are padded, on the left where the answer follows them, and answered together.
    `temperature` 0 takes the most likely token, or what `num_beams` beams find; otherwise the answers are a pure
    function of `seed` and all prompts. Random states are left as they were.
    """
    sampled = temperature > 0
    # Each value is set: those left out would be the model's own. Unsampled, other values would be warned of.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        temperature=temperature if sampled else 1.0,
        top_k=0 if sampled else 50,
        top_p=1.0,
        repetition_penalty=1.0,
        num_beams=num_beams,
        length_penalty=1.0,
        early_stopping=False,
        min_length=0,
        no_repeat_ngram_size=0,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_token_id,
    )
    answers: list[list[int]] = [[] for _ in prompts]
    was_training = lm.training
    lm.eval()
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _contiguous_head_inputs(lm):
        torch.manual_seed(seed)
        for group in _groups(prompts, BATCH_TOKENS // num_beams):
            ids, mask = _padded([prompts[i] for i in group], pad_token_id, left=not lm.config.is_encoder_decoder)
            inputs = {"input_ids": ids.to(lm.device), "attention_mask": mask.to(lm.device)}
            if adapters is not None:
                inputs[ADAPTER_OF_ROW] = torch.tensor([adapters[i] for i in group], device=lm.device)
            before = 1 if lm.config.is_encoder_decoder else ids.shape[1]  # the start token, or the prompt
            made = lm.generate(**inputs, generation_config=config)[:, before:].tolist()
            for i, answer in zip(group, made, strict=True):
                answers[i] = _until_stop(answer, stop_ids)
    lm.train(was_training)
    return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    min_new_tokens: int = 0
    """before a stop token may come"""
    temperature: float = 1.0
    """0 takes the most likely token"""
    top_k: int = 0
    """only so many of the most likely tokens; 0: all"""
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    """tokens that end an answer"""


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: list[int]
    """with the stop token that ended it"""
    ended: bool
    """by a stop token, not by being as long as it may be"""


class _Draw(LogitsProcessor):
    """Leaves of each row the one token that its own random numbers draw."""

    def __init__(self, sampling: Sampling, numbers: Tensor, start: int) -> None:
        """
        Args:
            numbers: [rows, max_new_tokens] float64.
            start: tokens of a row before its answer.
        """
        self.sampling, self.numbers, self.start = sampling, numbers, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        sampling, place = self.sampling, input_ids.shape[1] - self.start
        if place < sampling.min_new_tokens:
            scores = scores.clone()
            scores[:, list(sampling.stop_ids)] = -torch.inf
        limits = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        drawn = draw(scores, self.numbers[:, place], **limits)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn[:, None], 0.0)


@torch.no_grad()
def sample(
    lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    pad_token_id: int,
    seed: int,
    numbers: Sequence[int],
) -> list[Answer]:
    """A drawn answer to each prompt, in their order.

    Each is a pure function of its prompt, `seed` and its number, up to the rounding of logits: prompts may be cut
    over batches and processes in any way. Random states are left as they were.
    """
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        eos_token_id=list(sampling.stop_ids) or None,
        pad_token_id=pad_token_id,
    )
    answers: list[Answer | None] = [None] * len(prompts)
    was_training = lm.training
    lm.eval()
    left = not lm.config.is_encoder_decoder
    longest = [(*prompt, *range(sampling.max_new_tokens)) if left else prompt for prompt in prompts]
    with _contiguous_head_inputs(lm):
        for group in _groups(longest, BATCH_TOKENS):
            ids, mask = _padded([prompts[i] for i in group], pad_token_id, left=left)
            start = ids.shape[1] if left else 1
            own = np.stack([_numbers(seed, numbers[i], sampling.max_new_tokens) for i in group])
            drawing = _Draw(sampling, torch.from_numpy(own).to(lm.device), start)
            made = lm.generate(
                input_ids=ids.to(lm.device),
                attention_mask=mask.to(lm.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([drawing]),
            )
            for i, tokens in zip(group, made[:, start:].tolist(), strict=True):
                answers[i] = _answer(tokens, sampling.stop_ids)
    lm.train(was_training)
    return [answer for answer in answers if answer is not None]


def _numbers(seed: int, number: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).random(count)


def _answer(tokens: list[int], stop_ids: Sequence[int]) -> Answer:
    said = _until_stop(tokens, stop_ids)
    return Answer(tokens[: len(said) + 1], ended=len(said) < len(tokens))


@contextmanager
def _contiguous_head_inputs(lm: PreTrainedModel) -> Iterator[None]:
    """The last position of each prompt is a slice, of which torch makes a batched product: it would copy the head's
    weight once for each prompt, which took two fifths of the time on a CPU."""
    head = lm.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def _groups(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Indices of prompts that are answered together, longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        longest = len(prompts[groups[-1][0]]) if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= most:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _padded(prompts: Sequence[Sequence[int]], pad_token_id: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [prompts, longest] int64."""
    side = "left" if left else "right"
    ids = [torch.tensor(prompt) for prompt in prompts]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return pad(ids, padding_value=pad_token_id), pad([torch.ones_like(each) for each in ids], padding_value=0)


def _until_stop(answer: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(answer) if token in stop_ids), len(answer))
    return answer[:end]
