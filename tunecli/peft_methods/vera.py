"""VeRA: vectors that scale low-rank random projections, which all layers share (Kopiczko et al., 2024). The layers
are peft's. The projections follow from `projection_prng_key`, so they are not saved.

Departs from peft in that it can be put around and beside other methods, a second VeRA too: peft looks for the widest
layer among those that nothing is around yet, and a later VeRA makes it forget the projections of an earlier one.
"""

from __future__ import annotations

from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera import VeraModel
from peft.tuners.vera.layer import VeraLayer
from peft.utils import PeftType
from torch import nn
from transformers import PreTrainedModel

from tunecli.config.peft import VeraConfig
from tunecli.engine.quiet import no_meaningless_warnings
from tunecli.peft_methods.targets import linear_targets
from tunecli.peft_methods.tuner import in_width, out_width


class ComposableVera(VeraModel):
    """peft's, in a model that holds other adapters."""

    def _find_dim(self, config: peft.VeraConfig) -> tuple[int, int]:
        """Output and input width of the projections: the largest among the target modules."""
        modules = [
            module for key, module in self.model.named_modules() if self._check_target_module_exists(config, key)
        ]
        inside = [module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in modules]
        return max(out_width(module) or 0 for module in inside), max(in_width(module) or 0 for module in inside)

    def _create_and_replace(
        self, vera_config: peft.VeraConfig, adapter_name: str, target: nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        known = isinstance(target, VeraLayer)
        before = [dict(target.vera_A), dict(target.vera_B)] if known else [{}, {}]
        super()._create_and_replace(vera_config, adapter_name, target, *args, **kwargs)
        for projections, earlier in zip((self.vera_A, self.vera_B), before, strict=True):
            for name in earlier.keys() - set(projections):
                projections[name] = earlier[name]


PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VERA] = ComposableVera


@no_meaningless_warnings()
def peft_config(config: VeraConfig, model: PreTrainedModel) -> peft.VeraConfig:
    """The vector of the output side starts at zero, so the outputs do not change.

    Raises:
        UserError: a target is not in this model.
    """
    return peft.VeraConfig(
        r=config.r,
        d_initial=config.d_initial,
        vera_dropout=config.vera_dropout,
        projection_prng_key=config.projection_prng_key,
        save_projection=False,
        target_modules=linear_targets(model, config.target_modules),
    )
