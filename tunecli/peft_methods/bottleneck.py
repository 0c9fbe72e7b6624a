"""Bottleneck adapters: a small network (down, non-linearity, up) whose output is added inside each layer.

- houlsby: after attention and after the feed-forward layer (Houlsby et al., 2019, arXiv:1902.00751).
- pfeiffer: after the feed-forward layer only (Pfeiffer et al., 2021, arXiv:2005.00247); the series adapter of
  LLM-Adapters (Hu et al., 2023, arXiv:2304.01933).
- parallel: beside the feed-forward layer, from the same input (He et al., 2022, arXiv:2110.04366).

Houlsby et al.'s place is the sub-layer's last projection, before the residual sum and any normalisation: there
h + A(h) takes the place of the projection's output h. Pfeiffer et al.'s search on BERT has theirs read what the
LayerNorm makes of the residual sum x + h, and add to h, which is normalised again (`placement=after_norm`):
LN(x + h + A(LN(x + h))), as AdapterHub's library computes it. Models that normalise before their sub-layers have no
such LayerNorm, and there the pfeiffer adapter stands where the second one of houlsby does.

All of them can have MAD-X's invertible adapter at the embeddings (`invertible`): see `invertible.py`.

Departures:
- Encoder-decoders get one after cross-attention too with houlsby.
- `zero_start` (`up` is zero, `down` a linear layer's own start, as He et al. have it) is the default for all three.
  Without it weights are drawn as Houlsby et al. say (section 3.6): a normal of deviation 0.01, truncated at two
  deviations. Their published code has 0.001 as its default, AdapterHub's pfeiffer an untruncated 0.02.
- Normalisation layers stay frozen; Houlsby et al. train them too (`peft=[houlsby,ln_tuning]` does).
- Dropout acts inside the bottleneck, as in He et al.'s code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from threading import get_ident
from typing import Any

import torch
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import BottleneckConfig, PfeifferConfig, Placement
from tunecli.peft_methods.adapter_layer import AdapterLayer
from tunecli.peft_methods.invertible import (
    CoupledEmbedding,
    CoupledHead,
    Coupling,
    HalfNetwork,
    SameCoupling,
    coupled_modules,
    embedding_width,
)
from tunecli.peft_methods.layouts import LAYOUTS, Layout, Place, norm_after, place_of
from tunecli.peft_methods.targets import matching
from tunecli.peft_methods.tuner import (
    TunerConfig,
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

START = 0.01
"""Deviation of weights that do not start at zero."""


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
    after_norm: bool = False
    """the targets are LayerNorms of residual sums: read their output, and add to the sum"""
    coupled_inputs: list[str] = field(default_factory=list)
    """targets too: embeddings whose output goes through the invertible adapter"""
    coupled_head: str | None = None
    """a target too: the head before which that is undone"""
    coupling_size: int = 0
    """width inside the invertible adapter's networks"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK


class Reads(Enum):
    """What an adapter reads of the module that it is on."""

    output = "output"
    input = "input"
    earlier = "earlier"
    """the input of a module that ran before it"""
    normed = "normed"
    """the output, that of a LayerNorm, and adds to the input"""


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
        start(self, zero=config.zero_start)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = NON_LINEARITIES[self.non_linearity](self.down(hidden))
        return self.scaling * self.up(F.dropout(inner, self.dropout, self.training))


def start(network: Bottleneck | HalfNetwork, *, zero: bool) -> None:
    """Adding nothing, or next to nothing."""
    nn.init.zeros_(network.down.bias)
    nn.init.zeros_(network.up.bias)
    if zero:
        nn.init.zeros_(network.up.weight)
        return
    for weight in (network.down.weight, network.up.weight):
        nn.init.trunc_normal_(weight, std=START, a=-2 * START, b=2 * START)


def _reads(config: BottleneckPeftConfig) -> Reads:
    if config.after_norm:
        return Reads.normed
    if not config.parallel:
        return Reads.output
    return Reads.input if config.input_module is None else Reads.earlier


class BottleneckLayer(AdapterLayer):
    """A module with bottlenecks that read its output, its input, or the input of a module that ran before it.

    The last is for feed-forward layers that are no module of their own. That input waits here between the two
    modules, for each thread by itself, and is let go when used. A checkpointed layer that runs again in backward runs
    both modules again, in order, so it brings its own.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
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
        return any(adapter.reads is Reads.earlier for adapter in self.on())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        earlier = self._waiting.pop(get_ident()) if self._earlier_is_read() else None
        output = self.base_output(*args, **kwargs)
        for adapter in self.on():
            if adapter.reads is Reads.normed:
                args = (args[0] + self._added(adapter, output).to(args[0].dtype),)
                output = self.base_output(*args)
                continue
            hidden = {Reads.output: output, Reads.input: args[0], Reads.earlier: earlier}[adapter.reads]
            output = output + self._added(adapter, hidden).to(output.dtype)
        return output

    def _added(self, adapter: Bottleneck, hidden: Tensor) -> Tensor:
        return adapter(self._cast_input_dtype(hidden, adapter.down.weight.dtype))

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        base = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        if self._hook is not None:
            self._hook.remove()
        return base


class BottleneckModel(TunerModel):
    prefix = "bottleneck_"
    tuner_layer_cls = AdapterLayer

    def layer_class(self, config: BottleneckPeftConfig, path: str) -> type[AdapterLayer]:
        if path in config.coupled_inputs:
            return CoupledEmbedding
        return CoupledHead if path == config.coupled_head else BottleneckLayer

    def add_to_layer(self, layer: AdapterLayer, adapter_name: str, config: BottleneckPeftConfig, path: str) -> None:
        if isinstance(layer, BottleneckLayer):
            self._add_bottleneck(layer, adapter_name, config, path)
        else:
            layer.bottleneck_adapter[adapter_name] = self._coupling(layer, adapter_name, config, path)

    def _coupling(
        self, layer: AdapterLayer, adapter_name: str, config: BottleneckPeftConfig, path: str
    ) -> Coupling | SameCoupling:
        """The first of the modules that share one owns it."""
        owner = config.coupled_inputs[0]
        if path != owner:
            return SameCoupling(self.model.get_submodule(owner).bottleneck_adapter[adapter_name])
        coupling = Coupling(
            embedding_width(self.model),
            config.coupling_size,
            NON_LINEARITIES[config.non_linearity],
            device_of(layer.get_base_layer()),
        )
        for network in (coupling.first, coupling.second):
            start(network, zero=config.zero_start)
        return coupling

    def _add_bottleneck(
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
        UserError: the architecture is not known, or `target_modules` or `layers` names what is not there, or
            there is no LayerNorm to stand after, or a reduction factor leaves nothing.
    """
    parallel = config.method == "parallel"
    _check_factor("reduction_factor", config.reduction_factor, model_width(model))
    _check_factor("invertible_reduction_factor", config.invertible_reduction_factor, embedding_width(model) / 2)
    norm = _norm(config, model)
    places = {path: place for path, _ in model.named_modules() if (place := place_of(path))}
    if config.target_modules:
        paths = matching(model, list(places), config.target_modules)
        input_module = None
    else:
        layout = LAYOUTS.get(model.config.model_type)
        paths = _paths(layout, config.method, norm, places) if layout else []
        if not paths:
            raise _unknown(model)
        input_module = layout.feed_forward_input if parallel else None
    inputs, head = coupled_modules(model) if config.invertible else ([], None)
    return BottleneckPeftConfig(
        target_modules=[*in_layers(paths, config.layers, places), *inputs, *([head] if head else [])],
        bottleneck_size=config.bottleneck_size or max(1, int(model_width(model) / config.reduction_factor)),
        non_linearity=config.non_linearity.value,
        scaling=config.scaling,
        learned_scaling=config.learned_scaling,
        dropout=config.dropout,
        zero_start=config.zero_start,
        parallel=parallel,
        input_module=input_module,
        after_norm=norm is not None,
        coupled_inputs=inputs,
        coupled_head=head,
        coupling_size=_coupling_size(config, model) if config.invertible else 0,
    )


def _check_factor(key: str, factor: float, width: float) -> None:
    """Raises UserError for a reduction to less than nothing."""
    if factor > width:
        what = f"is {factor:g}, and what it divides is {width:g} wide"
        raise UserError(what, where=key, fix=f"{key}={width:g} or less")


def _norm(config: BottleneckConfig, model: PreTrainedModel) -> str | None:
    """Inside a layer, the LayerNorm after which adapters stand; None: before any.

    Raises:
        UserError: that was asked for, and this model has none.
    """
    if not isinstance(config, PfeifferConfig) or config.placement is Placement.before_norm or config.target_modules:
        return None
    norm = norm_after(model)
    if norm is None and config.placement is Placement.after_norm:
        raise UserError(
            f"{type(model).__name__} has no LayerNorm after the sum of a feed-forward layer and its input: it "
            f"normalises before, or its layers are not known",
            where="placement",
            fix="placement=before_norm",
        )
    return norm


def _coupling_size(config: BottleneckConfig, model: PreTrainedModel) -> int:
    return max(1, int(embedding_width(model) / 2 / config.invertible_reduction_factor))


def model_width(model: PreTrainedModel) -> int:
    return model.config.get_text_config().hidden_size


def _unknown(model: PreTrainedModel) -> UserError:
    known = sorted({path.rpartition(".")[2] for path, module in model.named_modules() if out_width(module)})
    return UserError(
        f"where attention and feed-forward layers end in {model.config.model_type} models is not known",
        where="target_modules",
        fix=f"name the modules to adapt, such as the last of each feed-forward layer: of {', '.join(known)}",
    )


def _paths(layout: Layout, method: str, norm: str | None, places: Mapping[str, Place]) -> list[str]:
    """Target modules of `method` in the model's layers: those with attention as in the layout. The layers of an image
    encoder, say, are built in another way."""
    ends = {
        "houlsby": layout.attention + layout.feed_forward,
        "pfeiffer": (norm,) if norm else layout.feed_forward,
        "parallel": layout.whole_feed_forward,
    }[method]
    layers = {place.layer for place in places.values() if place.inside in layout.attention}
    return [path for path, place in places.items() if place.layer in layers and place.inside in ends]


def in_layers(paths: list[str], numbers: list[int], places: Mapping[str, Place]) -> list[str]:
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
