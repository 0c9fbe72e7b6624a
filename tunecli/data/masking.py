"""Masked language modelling (Devlin et al., 2019, arXiv:1810.04805, section 3.1): of the tokens of a text a share is
chosen, and predicted from the rest; 80 % of them are replaced by the mask, 10 % by a random token, 10 % stay.

The share of a text is rounded to whole tokens, at least one, and special tokens are never chosen, as in the paper's
own code. It draws ten sets of masks for each text beforehand; here they are new each time that a text comes up (as in
Liu et al., 2019, RoBERTa), a pure function of the seed and the number of the example, so that a resumed run draws the
same and the number of processes does not matter. Texts are not joined, and there is no next-sentence prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tunecli.config.errors import UserError
from tunecli.data.encoded import Encoded
from tunecli.data.reading import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask, and a random token."""
STREAM = 3
"""Tells these random numbers from others of the same seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedTokens:
    """For a masked language model: the chosen tokens are predicted where they stand."""

    seed: int
    probability: float
    """share of the tokens that are chosen"""
    mask: int
    """id of the mask"""
    vocabulary: np.ndarray
    """[ordinary tokens] ids that random tokens are drawn from"""

    def __call__(self, example: Encoded, source: str, number: int) -> Reading:
        random = np.random.default_rng([self.seed, STREAM, number])
        places = np.flatnonzero(example.trained.numpy())
        chosen = np.sort(random.choice(places, max(round(self.probability * len(places)), 1), replace=False))
        fate = random.random(len(chosen))
        ids = example.input_ids.numpy().copy()
        targets = torch.from_numpy(ids[chosen])
        ids[chosen[fate < MASKED]] = self.mask
        exchanged = chosen[(fate >= MASKED) & (fate < MASKED + RANDOM)]
        ids[exchanged] = random.choice(self.vocabulary, len(exchanged))
        return Reading(torch.from_numpy(ids), torch.from_numpy(chosen), targets, torch.ones(len(chosen)))


def mask_of(tokenizer: PreTrainedTokenizerBase, otherwise: str = "") -> int:
    """The id of the mask. Raises UserError if there is none. `otherwise`: words that train a model that has none."""
    if tokenizer.mask_token_id is None:
        raise UserError(
            "its tokenizer has no mask token, so it is no masked language model",
            where="model.path",
            fix=f"an encoder such as BERT or RoBERTa{otherwise and f'; or {otherwise}'}",
        )
    return tokenizer.mask_token_id


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The ids of the vocabulary without the special ones."""
    return np.array(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)), np.int64)
