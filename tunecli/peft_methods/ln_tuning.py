"""LN tuning: the weights (and biases) of the normalisation layers alone are trained (Zhao et al., 2024). The layers
are peft's.

Departs from peft's defaults, which know the norms of some architectures by name: every normalisation layer is found.
"""

from __future__ import annotations

import peft
from peft.tuners.ln_tuning.layer import LNTuningLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.config.peft import LnTuningConfig
from tunecli.peft_methods.targets import matching


def peft_config(config: LnTuningConfig, model: PreTrainedModel) -> peft.LNTuningConfig:
    """The copies that are trained start as the base's, so the outputs do not change.

    Raises:
        UserError: a target is not in this model.
    """
    norms = [name for name, module in model.named_modules() if is_norm(module)]
    return peft.LNTuningConfig(
        target_modules=matching(model, norms, config.target_modules) if config.target_modules else norms
    )


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises and scales: LayerNorm, RMSNorm and their relatives."""
    kind = type(module).__name__.lower()
    return ("norm" in kind or isinstance(module, nn.LayerNorm)) and any(
        name == "weight" for name, _ in module.named_parameters(recurse=False)
    )


def keep_dtypes(model: nn.Module) -> None:
    """Have trained norms, which are fp32, answer in the dtype of their input, as those of the base do: what follows
    may take nothing but bf16."""
    for module in model.modules():
        if isinstance(module, LNTuningLayer) and not module._forward_hooks:
            module.register_forward_hook(_in_dtype_of_input)


def _in_dtype_of_input(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to(inputs[0].dtype)
