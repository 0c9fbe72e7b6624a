"""`ValueModel`: what PPO expects of an answer before each of its tokens, said by a model apart from the policy
(Stiennon et al., 2020; Ouyang et al., 2022)."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.engine.batch import Batch
from tunecli.models.policy import model_inputs, values_of


class ValueModel(nn.Module):
    """A decoder with a head for one number, asked at every trained token instead of at the end of a text."""

    def __init__(self, lm: PreTrainedModel, *, packed: bool) -> None:
        """
        Args:
            lm: a transformers model for sequence classification whose head, `score`, reads the last token.
            packed: batches are packed, else padded.
        """
        super().__init__()
        self.lm = lm
        self.packed = packed

    def forward(self, batch: Batch) -> Tensor:
        """[trained] fp32: what it says of each text as far as `batch.kept`."""
        hidden = self.lm.base_model(**model_inputs(batch)).last_hidden_state
        return values_of(self.lm.score, hidden.flatten(0, 1)[batch.kept])
