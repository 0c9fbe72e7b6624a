"""OFT: orthogonal rotations of the inputs of linear layers, in blocks (Qiu et al., 2023). The layers are peft's.

Departs from the paper in peft's way: the rotation is the Cayley transform by a truncated series, orthogonal up to
small errors.
"""

from __future__ import annotations

import peft
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import OftConfig
from tunecli.peft_methods.targets import linear_targets


def peft_config(config: OftConfig, model: PreTrainedModel) -> peft.OFTConfig:
    """The rotations start as identities, so the outputs do not change.

    Raises:
        UserError: a target is not in this model, or no multiple of the block size wide.
    """
    targets = linear_targets(model, config.target_modules, conv1d=False)
    for name in targets:
        width = model.get_submodule(name).in_features
        if width % config.oft_block_size:
            raise UserError(
                f"{config.oft_block_size} does not divide {width}, the input width of {name}",
                where="oft_block_size",
                fix="a divisor of it, or other target_modules",
            )
    return peft.OFTConfig(oft_block_size=config.oft_block_size, r=0, target_modules=targets)
