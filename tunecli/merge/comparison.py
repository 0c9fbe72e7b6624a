"""The logits of two models on the same sequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunecli.assembly.data import encoding_of
from tunecli.config.data import first_rows
from tunecli.config.errors import UserError
from tunecli.data.mixture import build
from tunecli.peft_methods.freeze import FreezeLayer
from tunecli.peft_methods.source import Source

SEQUENCES, LENGTH = 4, 128
"""What both models are compared on: so many sequences, of at most so many tokens."""
ROWS = 256
"""Rows of each source that are read to find validation examples."""


def comparison_sequences(source: Source, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Tensor], str]:
    """Token ids [tokens] of each, and what they are."""
    if source.run is not None and source.run.data.validation is not None:
        data = first_rows(source.run.data, ROWS)
        try:
            _, examples = build(data, tokenizer, encoding_of(source.run, tokenizer), show_progress=False)
        except (UserError, OSError):
            examples = None  # the data are no longer here
        if examples:
            chosen = [examples[i].input_ids[:LENGTH] for i in range(min(SEQUENCES, len(examples)))]
            return chosen, f"{len(chosen)} validation examples"
    generator = torch.Generator().manual_seed(0)
    size = (SEQUENCES, LENGTH // 2)
    return list(torch.randint(len(tokenizer), size, generator=generator)), f"{SEQUENCES} random sequences"


@torch.no_grad()
def logits(model: torch.nn.Module, sequences: list[Tensor]) -> list[Tensor]:
    """Of each sequence alone, in fp32 arithmetic whatever stores the weights; [tokens, vocabulary], of a classifier
    [1, labels], on the CPU. An encoder-decoder reads it on both sides."""
    device = next(model.parameters()).device
    sides = ["input_ids", "decoder_input_ids"] if model.config.is_encoder_decoder else ["input_ids"]
    found = []
    with _computing_in_fp32(model):
        for ids in sequences:
            inputs = dict.fromkeys(sides, ids[None].to(device))
            found.append(model(**inputs, use_cache=False).logits)
    return [each.view(-1, each.shape[-1]).float().cpu() for each in found]


@contextmanager
def _computing_in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Each module's weights are fp32 while it runs, so that never more than one module's are so."""
    kept: dict[int, list[tuple[torch.nn.Parameter, Tensor]]] = {}

    def widen(module: torch.nn.Module, _: Any) -> None:
        own = [p for p in _weights(module) if p.dtype in (torch.bfloat16, torch.float16)]
        kept[id(module)] = [(p, p.data) for p in own]
        for parameter in own:
            parameter.data = parameter.data.float()

    def narrow(module: torch.nn.Module, *_: Any) -> None:
        for parameter, data in kept.pop(id(module), ()):
            parameter.data = data

    hooks = [module.register_forward_pre_hook(widen) for module in model.modules()]
    hooks += [module.register_forward_hook(narrow, always_call=True) for module in model.modules()]
    four_bit = {module: module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")}
    for module in four_bit:
        module.compute_dtype = torch.float32
    try:
        yield
    finally:
        for module, dtype in four_bit.items():
            module.compute_dtype = dtype
        for hook in hooks:
            hook.remove()


def _weights(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """What decides the dtype that `module` answers in."""
    yield from module.parameters(recurse=False)
    if isinstance(module, FreezeLayer):
        yield from module.untouched.parameters(recurse=False)


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def agreement(one: list[Tensor], other: list[Tensor]) -> float:
    """Share of the places where both give the same next token the highest probability."""
    same = [(a.argmax(-1) == b.argmax(-1)).float() for a, b in zip(one, other, strict=True)]
    return torch.cat(same).mean().item()
