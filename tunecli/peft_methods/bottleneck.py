"""Bottleneck adapters: a small network (down, non-linearity, up) whose output is added inside each layer.

- houlsby: after attention and after the feed-forward layer (Houlsby et al., 2019, arXiv:1902.00751).
- pfeiffer: after the feed-forward layer only (Pfeiffer et al., 2021, arXiv:2005.00247); the series adapter of
  LLM-Adapters (Hu et al., 2023, arXiv:2304.01933).
- parallel: beside the feed-forward layer, from the same input (He et al., 2022, arXiv:2110.04366).

Departures:
- Adapters stand at the sub-layer's last projection, before any normalisation and the residual sum, in every
  architecture: Houlsby et al.'s place. Pfeiffer et al.'s search on BERT put theirs after the LayerNorm instead.
- Encoder-decoders get one after cross-attention too with houlsby.
- `zero_start` (`up` is zero, `down` a linear layer's own start, as He et al. have it) is the default for all three;
  without it weights have deviation 0.02, where Houlsby et al. say 0.01.
- Normalisation layers stay frozen; Houlsby et al. train them too (`peft=[houlsby,ln_tuning]` does).
- Dropout acts inside the bottleneck, as in He et al.'s code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from threading import get_ident
from typing import Any, NoReturn

import torch
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import BottleneckConfig
from tunecli.peft_methods.layouts import LAYOUTS, Layout, Place, place_of
from tunecli.peft_methods.targets import matching
from tunecli.peft_methods.tuner import (
    TunerConfig,
    TunerLayer,
    TunerModel,
    device_of,
    in_width,
    out_width,
    register,
)

NON_LINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass
class BottleneckPeftConfig(TunerConfig):
    """The three methods, as peft saves them: `target_modules` and `bottleneck_size` are those of one model."""

    bottleneck_size: int = 64
    non_linearity: str = "relu"
    scaling: float = 1.0
    learned_scaling: bool = False
    dropout: float = 0.0
    zero_start: bool = True
    parallel: bool = False
    """read the input of the target module instead of its output"""
    input_module: str | None = None
    """parallel: read the input of this module instead, a path inside the layer that the target is in"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK


class Reads(Enum):
    """What an adapter reads of the module that it is on."""

    output = "output"
    input = "input"
    earlier = "earlier"
    """the input of a module that ran before it"""


class Bottleneck(nn.Module):
    """What one adapter adds in one place: [..., width_in] -> [..., width_out], in fp32 unless autocast is on."""

    def __init__(
        self, width_in: int, width_out: int, config: BottleneckPeftConfig, device: torch.device | None
    ) -> None:
        super().__init__()
        new = {"device": device, "dtype": torch.float32}
        self.down = nn.Linear(width_in, config.bottleneck_size, **new)
        self.up = nn.Linear(config.bottleneck_size, width_out, **new)
        if config.learned_scaling:
            self.scaling = nn.Parameter(torch.full((1,), config.scaling, **new))
        else:
            self.scaling = config.scaling
        self.dropout = config.dropout
        self.non_linearity = config.non_linearity
        self.reads = _reads(config)
        self._start(zero=config.zero_start)

    def _start(self, *, zero: bool) -> None:
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if zero:
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.down.weight, std=0.02)
            nn.init.normal_(self.up.weight, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = NON_LINEARITIES[self.non_linearity](self.down(hidden))
        return self.scaling * self.up(F.dropout(inner, self.dropout, self.training))


def _reads(config: BottleneckPeftConfig) -> Reads:
    if not config.parallel:
        return Reads.output
    return Reads.input if config.input_module is None else Reads.earlier


class BottleneckLayer(TunerLayer):
    """A module with bottlenecks that read its output, its input, or the input of a module that ran before it.

    The last is for feed-forward layers that are no module of their own. That input waits here between the two
    modules, for each thread by itself, and is let go when used. A checkpointed layer that runs again in backward runs
    both modules again, in order, so it brings its own.
    """

    adapter_layer_names = ("bottleneck_adapter",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_adapter = nn.ModuleDict()
        self._hook: RemovableHandle | None = None
        self._waiting: dict[int, Tensor] = {}

    def read_input_of(self, module: nn.Module) -> None:
        """What `Reads.earlier` is."""
        if self._hook is None:
            self._hook = module.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._earlier_is_read():
            self._waiting[get_ident()] = args[0]

    def _earlier_is_read(self) -> bool:
        return any(adapter.reads is Reads.earlier for adapter in self._on())

    def _on(self) -> list[Bottleneck]:
        return [self.bottleneck_adapter[name] for name in self.adapters_on()]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        earlier = self._waiting.pop(get_ident()) if self._earlier_is_read() else None
        output = self.base_output(*args, **kwargs)
        for adapter in self._on():
            hidden = {Reads.output: output, Reads.input: args[0], Reads.earlier: earlier}[adapter.reads]
            hidden = self._cast_input_dtype(hidden, adapter.down.weight.dtype)
            output = output + adapter(hidden).to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        raise UserError(
            "bottleneck adapters cannot be merged: no weight of the model does what their non-linearity does",
            fix="use the model with its adapter; or train a method that merges, such as lora",
        )

    def unmerge(self) -> NoReturn:
        self.merge()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Called by peft, which takes the layer out of the model."""
        if merge:
            self.merge()
        if self._hook is not None:
            self._hook.remove()
        return self.get_base_layer()


class BottleneckModel(TunerModel):
    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def add_to_layer(
        self, layer: BottleneckLayer, adapter_name: str, config: BottleneckPeftConfig, path: str
    ) -> None:
        base = layer.get_base_layer()
        before = base
        if _reads(config) is Reads.earlier:
            before = self.model.get_submodule(f"{place_of(path).layer}.{config.input_module}")
            layer.read_input_of(before)
        width = model_width(self.model)
        width_out = out_width(base) or width
        width_in = (in_width(before) or width) if config.parallel else width_out
        layer.bottleneck_adapter[adapter_name] = Bottleneck(width_in, width_out, config, device_of(base))


register("bottleneck", BottleneckPeftConfig, BottleneckModel)


def peft_config(config: BottleneckConfig, model: PreTrainedModel) -> BottleneckPeftConfig:
    """The method `config.method` (houlsby, pfeiffer or parallel) for `model`.

    Raises:
        UserError: the architecture is not known, or `target_modules` or `layers` names what is not there.
    """
    parallel = config.method == "parallel"
    places = {path: place for path, _ in model.named_modules() if (place := place_of(path))}
    if config.target_modules:
        paths = matching(model, list(places), config.target_modules)
        input_module = None
    else:
        layout = LAYOUTS.get(model.config.model_type)
        paths = _paths(layout, config.method, places) if layout else []
        if not paths:
            raise _unknown(model)
        input_module = layout.feed_forward_input if parallel else None
    return BottleneckPeftConfig(
        target_modules=_in_layers(paths, config.layers, places),
        bottleneck_size=config.bottleneck_size or max(1, int(model_width(model) / config.reduction_factor)),
        non_linearity=config.non_linearity.value,
        scaling=config.scaling,
        learned_scaling=config.learned_scaling,
        dropout=config.dropout,
        zero_start=config.zero_start,
        parallel=parallel,
        input_module=input_module,
    )


def model_width(model: PreTrainedModel) -> int:
    return model.config.get_text_config().hidden_size


def _unknown(model: PreTrainedModel) -> UserError:
    known = sorted({path.rpartition(".")[2] for path, module in model.named_modules() if out_width(module)})
    return UserError(
        f"where attention and feed-forward layers end in {model.config.model_type} models is not known",
        where="target_modules",
        fix=f"name the modules to adapt, such as the last of each feed-forward layer: of {', '.join(known)}",
    )


def _paths(layout: Layout, method: str, places: Mapping[str, Place]) -> list[str]:
    """Target modules of `method` in the model's layers: those with attention as in the layout. The layers of an image
    encoder, say, are built in another way."""
    ends = {
        "houlsby": layout.attention + layout.feed_forward,
        "pfeiffer": layout.feed_forward,
        "parallel": layout.whole_feed_forward,
    }[method]
    layers = {place.layer for place in places.values() if place.inside in layout.attention}
    return [path for path, place in places.items() if place.layer in layers and place.inside in ends]


def _in_layers(paths: list[str], numbers: list[int], places: Mapping[str, Place]) -> list[str]:
    """Those of `paths` in the layers `numbers` (of an encoder-decoder: of both stacks), or all of them.

    Raises:
        UserError: there is no such layer.
    """
    known = {places[path].number for path in paths}
    missing = set(numbers) - known
    if missing:
        raise UserError(
            f"the model has no layer {', '.join(map(str, sorted(missing)))} to adapt",
            where="layers",
            fix=f"numbers from {min(known)} to {max(known)}",
        )
    return [path for path in paths if not numbers or places[path].number in numbers]
