"""Texts of the user's that end an answer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tunecli.config.errors import UserError


def stop_token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that each of `stage.stop_tokens` is.

    Raises:
        UserError: some are several tokens, or none.
    """
    found = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}
    if bad := {text: ids for text, ids in found.items() if len(ids) != 1 or ids[0] == tokenizer.unk_token_id}:
        said = "; ".join(f"{text!r}: {_said(ids, tokenizer)}" for text, ids in bad.items())
        raise UserError(
            f"each must be one token of the tokenizer, and these are not: {said}",
            where="stage.stop_tokens",
            fix="texts of single tokens, such as the end of a turn; stage.max_new_tokens ends every answer",
        )
    return [ids[0] for ids in found.values()]


def _said(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    if len(ids) == 1:
        return "not in the vocabulary"
    return " + ".join(repr(tokenizer.decode([token])) for token in ids) or "no token"
