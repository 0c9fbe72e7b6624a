"""Answers of a language model to prompts that are tokens already, many at a time; an encoder-decoder's to sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedModel

from tunecli.models.attention import ADAPTER_OF_ROW

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
