"""Answers of a causal language model to prompts that are tokens already, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
) -> list[list[int]]:
    """The answer to each prompt, in their order, without the stop token that ended it.

    `adapters`: which one each prompt is for, where several are chosen from by row.

    Prompts of about the same length are padded on the left and answered together. `temperature` 0 takes the most
    likely token; otherwise the answers are a pure function of `seed` and all prompts. Random states are left as
    they were.
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
        num_beams=1,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_token_id,
    )
    answers: list[list[int]] = [[] for _ in prompts]
    was_training = lm.training
    lm.eval()
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _contiguous_head_inputs(lm):
        torch.manual_seed(seed)
        for group in _groups(prompts):
            ids, mask = _left_padded([prompts[i] for i in group], pad_token_id)
            inputs = {"input_ids": ids.to(lm.device), "attention_mask": mask.to(lm.device)}
            if adapters is not None:
                inputs[ADAPTER_OF_ROW] = torch.tensor([adapters[i] for i in group], device=lm.device)
            made = lm.generate(**inputs, generation_config=config)[:, ids.shape[1] :].tolist()
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


def _groups(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of prompts that are answered together, longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        longest = len(prompts[groups[-1][0]]) if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= BATCH_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [prompts, longest] int64."""
    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _until_stop(answer: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(answer) if token in stop_ids), len(answer))
    return answer[:end]
