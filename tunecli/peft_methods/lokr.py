"""LoKr: updates that are Kronecker products of small matrices (LyCORIS, Yeh et al., 2024). The layers are peft's."""

from __future__ import annotations

import peft
from transformers import PreTrainedModel

from tunecli.config.peft import LoKrConfig
from tunecli.peft_methods.targets import linear_targets


def peft_config(config: LoKrConfig, model: PreTrainedModel) -> peft.LoKrConfig:
    """One of the factors starts at zero, so the outputs do not change.

    Raises:
        UserError: a target is not in this model.
    """
    return peft.LoKrConfig(
        r=config.r,
        alpha=config.alpha,
        decompose_factor=config.decompose_factor,
        target_modules=linear_targets(model, config.target_modules, conv1d=False),
    )
