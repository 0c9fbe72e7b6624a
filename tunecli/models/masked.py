"""`MaskedLM`: what `Policy` is to causal models, for masked ones (Devlin et al., 2019): the log-probability of a
token at its own position, with both sides in view.

Packed: the backbone runs on one row of sequences laid end to end, and only the positions that are predicted go
through the head, in checkpointed chunks. Padded: transformers' forward as it is. `self_test` finds which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.engine.batch import Batch
from tunecli.models.classifier import padded_inputs
from tunecli.models.policy import filled_up, model_inputs
from tunecli.ops.logprobs import CHUNK, checkpointed_logprobs, token_logprobs

MODULES = (
    ("cls",),
    ("lm_head",),
    ("predictions",),
    ("head", "decoder"),
    ("generator_predictions", "generator_lm_head"),
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
)
"""What transformers call the parts of a head: BERT and DeBERTa, RoBERTa, ALBERT, ModernBERT, ELECTRA, DistilBERT."""


class MaskedLM(nn.Module):
    """A masked language model that answers with the log-probabilities of the tokens to be predicted."""

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        packed: bool,
        head: tuple[str, ...] = (),
        first_position: int = 0,
    ) -> None:
        """
        Args:
            head: names of the modules from hidden states to logits, one after another; for packed rows.
            first_position: number of the first position of a text; RoBERTa counts from behind its padding token.
        """
        super().__init__()
        self.lm = lm
        self.packed = packed
        self.head = head
        self.first_position = first_position
        self.multiple = 1
        """Packed rows are filled up to a multiple of this many tokens."""

    def forward(self, batch: Batch) -> Tensor:
        """[trained] fp32 log-probabilities of `batch.targets` at the positions `batch.kept`."""
        if not self.packed:
            logits = self.lm(**padded_inputs(batch)).logits.flatten(0, 1)
            pieces = zip(batch.kept.split(CHUNK), batch.targets.split(CHUNK), strict=True)
            return torch.cat([token_logprobs(logits[kept], targets) for kept, targets in pieces])
        trained = len(batch.kept)
        batch = filled_up(batch, self.multiple)
        positions = batch.position_ids + self.first_position
        hidden = self.lm.base_model(**model_inputs(replace(batch, position_ids=positions))).last_hidden_state
        states = hidden.flatten(0, 1)[batch.kept]
        return checkpointed_logprobs(self._head(), states, batch.targets)[:trained]

    def _head(self) -> Callable[[Tensor], Tensor]:
        modules = [getattr(self.lm, name) for name in self.head]

        def logits(states: Tensor) -> Tensor:
            for module in modules:
                states = module(states)
            return states

        return logits


def heads(lm: PreTrainedModel) -> Iterator[tuple[str, ...]]:
    """The heads that `lm` may have, by their names."""
    return (names for names in MODULES if all(hasattr(lm, name) for name in names))
