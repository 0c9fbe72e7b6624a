"""`Classifier`: what `Policy` is to language models, for models with a head of their own: logits of labels instead of
log-probabilities of tokens.

Packed: the backbone runs on one row of sequences laid end to end, and the head sees the states of the positions that
count, one for each text or one for each word. transformers' own classifiers would give one answer for the whole row.
Padded: transformers' forward as it is. `self_test` finds which of them is exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.engine.batch import Batch
from tunecli.models.policy import filled_up, model_inputs


class Classifier(nn.Module):
    """A model that answers with logits of labels, of texts or of words."""

    def __init__(self, lm: PreTrainedModel, *, packed: bool, whole: bool, first_position: int = 0) -> None:
        """
        Args:
            whole: one answer for each text, else one for each position.
            first_position: number of the first position of a text; RoBERTa counts from behind its padding token.
        """
        super().__init__()
        self.lm = lm
        self.packed = packed
        self.whole = whole
        self.first_position = first_position
        self.multiple = 1
        """Packed rows are filled up to a multiple of this many tokens."""
        self.trees = False
        """As in `Policy`."""

    def forward(self, batch: Batch) -> Tensor:
        """[units, labels] fp32, for each position in `batch.kept`."""
        if not self.packed:
            logits = self.lm(**padded_inputs(batch)).logits
            return (logits if self.whole else logits.flatten(0, 1)[batch.kept]).float()
        units = len(batch.kept)
        batch = filled_up(batch, self.multiple)
        positions = batch.position_ids + self.first_position
        hidden = self.lm.base_model(**model_inputs(replace(batch, position_ids=positions))).last_hidden_state
        states = hidden.flatten(0, 1)[batch.kept]
        return (self._of_texts(states) if self.whole else self._of_words(states))[:units].float()

    def _of_texts(self, states: Tensor) -> Tensor:
        """`states`: [texts, hidden]"""
        if hasattr(self.lm, "score"):
            return self.lm.score(states)
        pooler = getattr(self.lm.base_model, "pooler", None)
        if pooler is None:
            return self.lm.classifier(states[:, None])
        return self.lm.classifier(self.lm.dropout(pooler(states[:, None])))

    def _of_words(self, states: Tensor) -> Tensor:
        """`states`: [words, hidden]"""
        head = self.lm.score if hasattr(self.lm, "score") else self.lm.classifier
        return head(self.lm.dropout(states))

    @property
    def looks_at_last(self) -> bool:
        """Whether the last token of a text stands for the whole, else the first."""
        return hasattr(self.lm, "score")


def padded_inputs(batch: Batch) -> dict[str, Any]:
    """Without positions: transformers count them, and not every model takes them."""
    inputs = model_inputs(batch)
    return {name: value for name, value in inputs.items() if name not in ("position_ids", "use_cache")}
