"""LoHa: elementwise products of two low-rank updates (FedPara, Hyeon-Woo et al., 2022). The layers are peft's."""

from __future__ import annotations

import peft
from transformers import PreTrainedModel

from tunecli.config.peft import LoHaConfig
from tunecli.peft_methods.targets import linear_targets


def peft_config(config: LoHaConfig, model: PreTrainedModel) -> peft.LoHaConfig:
    """One of the factors starts at zero, so the outputs do not change.

    Raises:
        UserError: a target is not in this model.
    """
    return peft.LoHaConfig(
        r=config.r,
        alpha=config.alpha,
        target_modules=linear_targets(model, config.target_modules, conv1d=False),
    )
