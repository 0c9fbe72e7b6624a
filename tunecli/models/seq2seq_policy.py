"""`Seq2SeqPolicy`: what `Policy` is to language models, for encoder-decoders. Rows are padded, both what the encoder
reads and what the decoder reads; only the positions of real targets go through the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.engine.batch import Batch
from tunecli.models import attention
from tunecli.models.policy import Detail, Details, Head, head_logprobs, head_statistics, statistics, values_of
from tunecli.ops.logprobs import CHUNK, token_logprobs


class Seq2SeqPolicy(nn.Module):
    """An encoder-decoder that answers with the log-probabilities of the tokens of the targets."""

    packed = False

    def __init__(self, lm: PreTrainedModel, *, head: Head) -> None:
        super().__init__()
        self.lm = lm
        self.head = head
        self.multiple = 1
        """As in `Policy`; padded rows are not filled up."""
        self.value_head: nn.Linear | None = None
        """As in `Policy`."""

    def forward(self, batch: Batch, detail: Detail | None = None) -> Tensor | Details:
        """[trained] fp32 log-probabilities of `batch.targets`; with `detail` entropies and values too."""
        if detail is not None:
            return self._details(batch, detail)
        if self.head is Head.chunked:
            states = decoder_states(self.lm, batch).flatten(0, 1)[batch.kept]
            return head_logprobs(self.lm.get_output_embeddings(), states, batch.targets)
        logits = self.lm(**_encoder_inputs(batch), **_decoder_inputs(batch)).logits.flatten(0, 1)
        pieces = zip(batch.kept.split(CHUNK), batch.targets.split(CHUNK), strict=True)
        return torch.cat([token_logprobs(logits[kept], targets) for kept, targets in pieces])

    def _details(self, batch: Batch, detail: Detail) -> Details:
        if self.head is Head.chunked:
            states = decoder_states(self.lm, batch).flatten(0, 1)[batch.kept]
            found = head_statistics(self.lm.get_output_embeddings(), states, batch.targets, detail)
            return Details(*found, self._values(states, detail))
        written = self.lm(**_encoder_inputs(batch), **_decoder_inputs(batch), output_hidden_states=True)
        states = written.decoder_hidden_states[-1].flatten(0, 1)[batch.kept]
        logits = written.logits.flatten(0, 1)[batch.kept]
        return Details(*statistics(logits, batch.targets, detail), self._values(states, detail))

    def _values(self, states: Tensor, detail: Detail) -> Tensor | None:
        return values_of(self.value_head, states) if self.value_head is not None and detail.values else None


def decoder_states(lm: PreTrainedModel, batch: Batch) -> Tensor:
    """[rows, decoder width, hidden] of the decoder's last layer."""
    read = lm.get_encoder()(**_encoder_inputs(batch), **_route(batch)).last_hidden_state
    written = lm.get_decoder()(
        input_ids=batch.decoder_input_ids,
        attention_mask=batch.decoder_attention_mask,
        encoder_hidden_states=read,
        encoder_attention_mask=batch.attention_mask,
        use_cache=False,
        **_route(batch),
    )
    return written.last_hidden_state


def _encoder_inputs(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _decoder_inputs(batch: Batch) -> dict[str, Any]:
    return {
        "decoder_input_ids": batch.decoder_input_ids,
        "decoder_attention_mask": batch.decoder_attention_mask,
        "use_cache": False,
        **_route(batch),
    }


def _route(batch: Batch) -> dict[str, Any]:
    return {} if batch.adapters is None else {attention.ADAPTER_OF_ROW: batch.adapters}


def shifted(lm: PreTrainedModel, target: Tensor) -> Tensor:
    """[m] what the decoder reads when it predicts `target` [m], as the model itself makes it of labels: T5 and BART
    put a start token in front, mBART its language.

    Raises:
        UserError: the model does not say what its decoder starts with.
    """
    own = getattr(lm, "prepare_decoder_input_ids_from_labels", None)
    start = lm.config.decoder_start_token_id
    try:
        if own is not None:
            return own(labels=target[None])[0]
        return torch.cat([target.new_tensor([start]), target[:-1]])
    except (ValueError, TypeError, AssertionError) as error:
        if start is not None:
            raise
        raise UserError(
            f"{type(lm).__name__} does not say which token its decoder starts with",
            where="model.path",
            fix="set decoder_start_token_id in the config.json of the model",
        ) from error
