"""Prompt tuning: trained embeddings in front of the input (Lester et al., 2021, arXiv:2104.08691).

Departures: in front of the text, but behind the token that opens a sequence, as classifiers look for [CLS] in the
first place. Labels of several tokens start as the mean of their embeddings, as in the paper. Of encoder-decoders the
encoder's input gets them, as in the paper.
"""

from __future__ import annotations

from itertools import cycle, islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.counted import counted
from tunecli.config.errors import UserError
from tunecli.config.peft import PromptInit, PromptTuningConfig
from tunecli.peft_methods.virtual_tokens import VirtualTokensPeftConfig, embedding_path, word_candidates


def peft_config(
    config: PromptTuningConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    token_ids: list[int],
) -> VirtualTokensPeftConfig:
    """
    Args:
        tokenizer: that of the words to start from; None starts from random numbers, for counting.

    Raises:
        UserError: the text or a label to start from has no tokens, there are too few words to draw from, or the
            model is one that virtual tokens cannot be put into.
    """
    rows: list[list[int]] = []
    candidates = None
    if tokenizer is not None and config.init is not PromptInit.random_uniform:
        rows = _rows(config, tokenizer)
        candidates = word_candidates(tokenizer, config.init_top_k)
        if len(candidates) < config.num_virtual_tokens - len(rows):
            raise UserError(
                f"{counted(len(candidates), 'word')}, and "
                f"{config.num_virtual_tokens - len(rows)} are to be drawn from them",
                where="init_top_k",
                fix="a larger one, if the vocabulary has more words; or init=random_uniform",
            )
    return VirtualTokensPeftConfig(
        target_modules=[embedding_path(model)],
        num_virtual_tokens=len(token_ids),
        token_ids=token_ids,
        init_rows=rows[: len(token_ids)],
        init_candidates=candidates,
    )


def _rows(config: PromptTuningConfig, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Words that virtual tokens start as the mean of."""
    if config.init is PromptInit.text:
        ids = _ids(tokenizer, config.init_text or "", "init_text")
        return [[token] for token in islice(cycle(ids), config.num_virtual_tokens)]
    if config.init is PromptInit.labels:
        return [_ids(tokenizer, label, "init_labels") for label in config.init_labels]
    return []


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, key: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"{text!r} has no tokens", where=key, fix="words to start from")
    return ids
