"""A model of ours as lm-evaluation-harness knows models: its `HFLM` around the model with all its adapters in place.
What it cannot know are the virtual tokens of soft prompts: they are put where training put them, behind what opens a
text, in front of the answer, and before what closes the source of an encoder-decoder.

Only imported where `lm_eval` is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""texts, token ids of the context and of what follows it"""


class Asked(HFLM):  # type: ignore[misc]
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, batch_size: int
    ) -> None:
        """
        Args:
            encoding: says where the virtual tokens stand.
        """
        backend = "seq2seq" if model.config.is_encoder_decoder else "causal"
        with _tied(model):
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend=backend)
        self.opening, self.closing = TextEncoder(tokenizer).ends
        self.before, self.between = list(encoding.before), list(encoding.between)

    @property
    def added(self) -> int:
        return len(self.before) + len(self.between)

    def surrounded(self, ids: list[int]) -> list[int]:
        """With the virtual tokens in their places."""
        first, last = len(self.opening), len(ids) - len(self.closing)
        if ids[:first] != list(self.opening):
            first = 0
        if ids[last:] != list(self.closing) or last < first:
            last = len(ids)
        return [*ids[:first], *self.before, *ids[first:last], *self.between, *ids[last:]]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self.added:
            requests = [
                (texts, self.surrounded(context[-self._room(target) :]), target)
                for texts, context, target in requests
            ]
        return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def _room(self, target: list[int]) -> int:
        """Tokens of the context that fit, virtual ones aside: the harness would cut those off first."""
        shared = len(target) - 1 if self.backend == "causal" else 0
        return max(self.max_length - self.added - shared, 1)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, [strings, longest], of texts that are to be gone on with. A source is padded
        at its end, whichever side is asked for: not all encoders count positions from the first token seen."""
        side = padding_side if self.backend == "causal" else "right"
        room = None if left_truncate_len is None else max(left_truncate_len - self.added, 1)
        cut = slice(None) if room is None else slice(-room, None)
        ids = [torch.tensor(self.surrounded(self.tok_encode(text)[cut])) for text in strings]
        options: dict[str, Any] = {"batch_first": True, "padding_side": side}
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(each) for each in ids], padding_value=0, **options)
        return pad(ids, padding_value=self.tokenizer.pad_token_id, **options), mask


@contextmanager
def _tied(model: PreTrainedModel) -> Iterator[None]:
    """The harness ties weights again, which layers that adapters wrap have no place for; they are tied already."""
    model.tie_weights = lambda: None
    try:
        yield
    finally:
        del model.tie_weights
