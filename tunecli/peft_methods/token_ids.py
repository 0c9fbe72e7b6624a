"""Which token ids the virtual tokens of a run have, and where they stand in its examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunecli.config.errors import UserError
from tunecli.config.peft import PeftConfig, PTuningConfig, without_head
from tunecli.config.template import Field, Template, Virtual, parse_template
from tunecli.config.virtual import takes_unused_tokens, virtual_ids
from tunecli.peft_methods.source import ADAPTER
from tunecli.peft_methods.virtual_tokens import UNUSED


def token_ids(methods: Mapping[str, PeftConfig], tokenizer: PreTrainedTokenizerBase | None) -> dict[str, list[int]]:
    """Of each entry that has virtual tokens. Without a tokenizer, for counting, none is the vocabulary's own.

    Raises:
        UserError: the vocabulary has too few unused tokens.
    """
    ids = {name: list(numbers) for name, numbers in virtual_ids(methods).items()}
    taken = 0
    for name in ids:
        if tokenizer is not None and takes_unused_tokens(methods[name]):
            unused = _unused_ids(tokenizer, taken + len(ids[name]), f"peft.{name}.tokens")
            ids[name] = unused[taken:]
            taken = len(unused)
    return ids


def _unused_ids(tokenizer: PreTrainedTokenizerBase, count: int, key: str) -> list[int]:
    """The first `count` tokens of the vocabulary that stand for nothing."""
    names = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ids = [token for name, token in names if UNUSED.fullmatch(name)]
    if len(ids) < count:
        raise UserError(
            f"the vocabulary has {len(ids)} unused tokens, and {count} are wanted",
            where=key,
            fix=f"{key}=virtual, which needs none",
        )
    return ids[:count]


def around(prompts: Sequence[tuple[str, Sequence[int]]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of an `Encoding` that say where virtual tokens stand.

    Args:
        prompts: the template of each entry, or nothing for in front, and the ids of its tokens.
    """
    before: list[int] = []
    between: list[int] = []
    for text, ids in prompts:
        if not text:
            before += ids
            continue
        template = parse_template(text)
        if template.columns or template.has_mask:
            return {"before": tuple(before), "between": (), "template": text, "template_ids": tuple(ids)}
        head, tail = _around_prompt(template, ids, tokenizer)
        before += head
        between += tail
    return {"before": tuple(before), "between": tuple(between), "template": "", "template_ids": ()}


def _around_prompt(
    template: Template, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Virtual tokens and anchor words in front of `{prompt}`, and between it and `{completion}`."""
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for piece in template.pieces:
        if isinstance(piece, Field):
            side = 1
        elif isinstance(piece, Virtual):
            sides[side].extend(ids[piece.first : piece.first + piece.count])
        elif piece.text.strip():
            sides[side].extend(tokenizer(piece.text.strip(), add_special_tokens=False)["input_ids"])
    return sides


def places_in_saved(folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`around` for the peft checkpoints in `folders`."""
    saved = [json.loads((folder / ADAPTER).read_text(encoding="utf-8")) for folder in folders]
    prompts = [(each["template"], each["token_ids"]) for each in saved if each["peft_type"] == "VIRTUAL_TOKENS"]
    return around(prompts, tokenizer)


def places_of_virtual_tokens(
    methods: Mapping[str, PeftConfig], tokenizer: PreTrainedTokenizerBase, *, adapter_column: str | None
) -> dict[str, Any]:
    """The fields of an `Encoding` that say where the virtual tokens of a run stand: in every example, or each entry's
    in the examples that `adapter_column` says are its own."""
    ids = token_ids(methods, tokenizer)
    prompts = {
        name: (method.template if isinstance(method, PTuningConfig) else "", ids[name])
        for name, method in methods.items()
        if name in ids
    }
    if adapter_column is None:
        return around(list(prompts.values()), tokenizer)
    own = {name: around([prompts[name]] if name in prompts else [], tokenizer) for name in without_head(methods)}
    return {"adapter_column": adapter_column, "adapters": own}
