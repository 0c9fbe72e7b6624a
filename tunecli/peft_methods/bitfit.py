"""BitFit: only biases are trained (Ben Zaken et al., 2022, arXiv:2106.10199), those of normalisation layers too.

Departures:
- What is trained is a shift of the output of each module with a bias. With SGD or Adam that is the same as training
  the bias; with weight decay the shift, not the bias, is pulled to zero. So it can be switched off, saved by itself
  and combined with other methods, and merging adds it to the bias.
- `add_missing` gives linear layers without a bias one that starts at zero: LLaMA-like models have none to train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import BitFitConfig
from tunecli.peft_methods.targets import head_names, is_under, matching
from tunecli.peft_methods.tuner import TunerConfig, TunerLayer, TunerModel, base_of, device_of, out_width, register


@dataclass
class BitFitPeftConfig(TunerConfig):
    add_missing: bool = False
    """some of the target modules have no bias of their own"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.BITFIT


class BitFitLayer(TunerLayer):
    """A module and the shifts of its output."""

    adapter_layer_names = ("bitfit_shift",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bitfit_shift = nn.ParameterDict()
        self._unmerged: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        output = self.base_output(*args, **kwargs)
        for name in self.adapters_on():
            output = output + self.bitfit_shift[name].to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add shifts to the bias; a layer without one gets one.

        Raises:
            ValueError: a shift is not finite, and `safe_merge` asks for that to be checked.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.bitfit_shift]
        if not names:
            return
        shift = torch.stack([self.bitfit_shift[name].detach() for name in names]).sum(0)
        if safe_merge and not shift.isfinite().all():
            raise ValueError(f"the shift of {', '.join(names)} is not finite")
        base = self.get_base_layer()
        if not self.merged_adapters:
            self._unmerged = None if base.bias is None else base.bias.data
        merged = _plus(base.bias, shift, base.weight.dtype)
        if base.bias is None:
            base_of(self).bias = nn.Parameter(merged, requires_grad=False)
        else:
            base.bias.data = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the bias back as it was, to the last bit."""
        if not self.merged_adapters:
            return
        if self._unmerged is None:
            base_of(self).bias = None
        else:
            self.get_base_layer().bias.data = self._unmerged
        self.merged_adapters.clear()


def _plus(bias: Tensor | None, shift: Tensor, weight_dtype: torch.dtype) -> Tensor:
    """In the bias's precision; of a new bias, in that of the weight where that is no integer type."""
    if bias is None:
        return shift.to(weight_dtype if weight_dtype.is_floating_point else shift.dtype)
    return (bias.detach().float() + shift).to(bias.dtype)


class BitFitModel(TunerModel):
    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def add_to_layer(self, layer: BitFitLayer, adapter_name: str, config: BitFitPeftConfig, path: str) -> None:
        base = layer.get_base_layer()
        width = base.bias.numel() if _has_bias(base) else out_width(base)
        layer.bitfit_shift[adapter_name] = nn.Parameter(torch.zeros(width, device=device_of(base)))


register("bitfit", BitFitPeftConfig, BitFitModel)


def peft_config(config: BitFitConfig, model: PreTrainedModel) -> BitFitPeftConfig:
    """Every module of `model` with a bias, or those that `config` names.

    Raises:
        UserError: none of them has a bias and `add_missing` is off, or `target_modules` names what is not there.
    """
    possible = {path: module for path, module in model.named_modules() if _has_bias(module) or out_width(module)}
    if config.target_modules:
        paths = matching(model, list(possible), config.target_modules)
    else:
        heads = head_names(model)
        paths = [path for path in possible if not is_under(path, heads)]
    targets = [path for path in paths if config.add_missing or _has_bias(possible[path])]
    if not targets:
        raise UserError(
            "none of the target modules has a bias" if config.target_modules else "this model has no biases to train",
            where="add_missing",
            fix="add_missing=true, which gives each linear layer a bias that starts at zero",
        )
    return BitFitPeftConfig(
        target_modules=targets, add_missing=not all(_has_bias(possible[path]) for path in targets)
    )


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), nn.Parameter)  # GPT-2's attention calls a mask `bias`
