"""LoKr: updates that are Kronecker products of small matrices (LyCORIS, Yeh et al., 2024). The layers are peft's."""

from __future__ import annotations

import peft
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import LoKrConfig
from tunecli.peft_methods.targets import linear_targets


def peft_config(config: LoKrConfig, model: PreTrainedModel) -> peft.LoKrConfig:
    """One of the factors starts at zero, so the outputs do not change.

    Raises:
        UserError: a target is not in this model, or `decompose_factor` is larger than all of them.
    """
    targets = linear_targets(model, config.target_modules, conv1d=False)
    widest = max((max(model.get_submodule(path).weight.shape) for path in targets), default=0)
    if config.decompose_factor > widest:
        what = f"is {config.decompose_factor}, and the widest of the layers has {widest}: none can be cut so"
        raise UserError(what, where="decompose_factor", fix=f"decompose_factor=-1, or at most {widest}")
    return peft.LoKrConfig(
        r=config.r,
        alpha=config.alpha,
        decompose_factor=config.decompose_factor,
        target_modules=targets,
    )
