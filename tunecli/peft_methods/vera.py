"""VeRA: vectors that scale low-rank random projections, which all layers share (Kopiczko et al., 2024). The layers
are peft's. The projections follow from `projection_prng_key`, so they are not saved.
"""

from __future__ import annotations

import warnings

import peft
from transformers import PreTrainedModel

from tunecli.config.peft import VeraConfig
from tunecli.peft_methods.targets import linear_targets


def peft_config(config: VeraConfig, model: PreTrainedModel) -> peft.VeraConfig:
    """The vector of the output side starts at zero, so the outputs do not change.

    Raises:
        UserError: a target is not in this model.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not save vera_A")
        return _peft_config(config, linear_targets(model, config.target_modules))


def _peft_config(config: VeraConfig, targets: list[str]) -> peft.VeraConfig:
    return peft.VeraConfig(
        r=config.r,
        d_initial=config.d_initial,
        vera_dropout=config.vera_dropout,
        projection_prng_key=config.projection_prng_key,
        save_projection=False,
        target_modules=targets,
    )
