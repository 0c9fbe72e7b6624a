"""Continued pretraining on plain documents (domain-adaptive pretraining: Gururangan et al., 2020, arXiv:2004.10964).

The loss is the mean over the predicted tokens of the global batch: every token but the first of a document with the
causal objective, the masked ones (`tunecli.data.masking`) with the masked one. What is read of examples makes the
difference. Documents are laid end to end in the row of a micro-batch, and none sees another: unlike GPT-3's recipe
(Brown et al., 2020) a window never begins in one document and ends in the next.
"""

from __future__ import annotations

from tunecli.stages.setting import Setting
from tunecli.stages.sft import sft
from tunecli.stages.supervised import Supervised


def pretrain(setting: Setting) -> Supervised:
    return sft(setting)
