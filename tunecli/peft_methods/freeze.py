"""Partial fine-tuning: chosen weights of the base are trained as they are, the others are frozen (Lee et al., 2019,
arXiv:1911.03090, for the last layers; Howard and Ruder, 2018, arXiv:1801.06146).

The base's own tensors stay untouched. Each chosen one gets a trained copy in fp32 that stands in for it, so this
method is switched off, saved, loaded and combined with others like any other here. It takes the memory of these
copies, their gradients and the optimizer's state beside that of the whole base.

- Tensors that are one in the base (tied embeddings) are one copy.
- A copy stands innermost: other methods on the same module take it for the base, in whatever order they are named.
- Where the base is bf16 a module with a copy computes in fp32, or as autocast has it, and answers in bf16.
- Of two such adapters that are on and choose the same tensor the later one's copy counts, which starts as the other.
  Two that are both trained are refused: the earlier copy would never learn.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.config.errors import UserError
from tunecli.config.peft import FreezeConfig
from tunecli.peft_methods.layouts import place_of
from tunecli.peft_methods.ln_tuning import is_norm
from tunecli.peft_methods.targets import head_names, is_under, task_heads
from tunecli.peft_methods.tuner import TunerConfig, TunerLayer, TunerModel, base_of, innermost, register


@dataclass
class FreezePeftConfig(TunerConfig):
    parameters: list[str] = field(default_factory=list)
    """names in the base of what is trained, each tensor once"""
    tied: list[str] = field(default_factory=list)
    """further names of the same tensors"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.FREEZE


class FreezeLayer(TunerLayer):
    """A module without submodules, and copies of some of its parameters."""

    adapter_layer_names = ("freeze_copy",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.freeze_copy = nn.ModuleDict()
        self._unmerged: dict[str, Tensor] = {}

    @property
    def base_layer(self) -> nn.Module:
        """What other methods' layers around this one work on: the module with its copies, if any is on."""
        copies = self._copies(self.adapters_on())
        return _with(self.untouched, copies) if copies else self.untouched

    @property
    def untouched(self) -> nn.Module:
        """The base's own module."""
        return base_of(self)

    def _copies(self, adapters: list[str]) -> dict[str, nn.Parameter]:
        return {key: value for adapter in adapters for key, value in self.freeze_copy[adapter].items()}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if not self._copies(self.adapters_on()):
            return self.base_output(*args, **kwargs)
        dtype = next(parameter.dtype for parameter in self.untouched.parameters())
        if dtype is torch.float32:
            return self.base_output(*args, **kwargs)
        args = tuple(self._in_fp32(each) for each in args)
        return self.base_output(*args, **kwargs).to(dtype)

    def _in_fp32(self, value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return self._cast_input_dtype(value, torch.float32) if floating else value

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the copies into the base's tensors. A tensor that another module shares is written once.

        Raises:
            ValueError: a copy is not finite, and `safe_merge` asks for that to be checked.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.freeze_copy]
        for key, trained in self._copies(names).items():
            if safe_merge and not trained.isfinite().all():
                raise ValueError(f"the copy of {key} is not finite")
            base = self.untouched.get_parameter(key)
            value = trained.detach().to(base.dtype)
            if not torch.equal(base, value):
                self._unmerged.setdefault(key, base.data)
                base.data = value.clone() if value.data_ptr() == trained.data_ptr() else value
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base's tensors back as they were, to the last bit."""
        for key, value in self._unmerged.items():
            self.untouched.get_parameter(key).data = value
        self._unmerged.clear()
        self.merged_adapters.clear()


def _with(module: nn.Module, copies: dict[str, nn.Parameter]) -> nn.Module:
    """`module` with other parameters, as an object of its own: threads do not meet, and the base stays as it is."""
    twin = copy.copy(module)
    twin._parameters = {
        name: copies[name] if name in copies else _like(parameter, copies)
        for name, parameter in module._parameters.items()
    }
    return twin


def _like(parameter: Tensor | None, copies: dict[str, nn.Parameter]) -> Tensor | None:
    """What is not trained, in the copies' precision: products of two are refused."""
    return None if parameter is None else parameter.to(next(iter(copies.values())).dtype)


def check_apart(trained: Mapping[str, FreezePeftConfig]) -> None:
    """Raises UserError where two of the entries train the same tensor."""
    owner: dict[str, str] = {}
    for name, config in trained.items():
        chosen = [*config.parameters, *config.tied]
        if shared := [parameter for parameter in chosen if parameter in owner]:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise UserError(
                f"chooses {shared[0]}{more}, and so does peft.{owner[shared[0]]}: one copy would never learn",
                where=f"peft.{name}",
                fix="let one entry choose each tensor; the head of a classifier or tagger is the entry head's",
            )
        owner |= dict.fromkeys(chosen, name)


class FreezeModel(TunerModel):
    prefix = "freeze_"
    tuner_layer_cls = FreezeLayer

    def _pre_injection_hook(self, model: nn.Module, config: FreezePeftConfig, adapter_name: str) -> None:
        self._new: dict[int, nn.Parameter] = {}  # id of a tensor of the base -> its copy, which tied modules share

    def add_to_layer(self, layer: FreezeLayer, adapter_name: str, config: FreezePeftConfig, path: str) -> None:
        chosen = {*config.parameters, *config.tied}
        now = layer.base_layer._parameters  # where an adapter is on already, its copies
        copies = nn.ParameterDict()
        for name, parameter in layer.untouched.named_parameters(recurse=False):
            if f"{path}.{name}" in chosen:
                start = now[name].detach().to(torch.float32, copy=True)
                copies[name] = self._new.setdefault(id(parameter), nn.Parameter(start))
        layer.freeze_copy[adapter_name] = copies

    def _create_and_replace(
        self,
        peft_config: TunerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Within other methods' wrappers, next to the base's module."""
        if isinstance(target, BaseTunerLayer) and not isinstance(target, FreezeLayer):
            parent, target_name = innermost(target), "base_layer"
            target = parent if isinstance(parent, FreezeLayer) else parent.base_layer
        super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: FreezePeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Tied tensors once."""
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        return {key: value for key, value in found.items() if _name_in_base(key, adapter_name) not in config.tied}


def _name_in_base(key: str, adapter: str) -> str:
    return key.removeprefix("base_model.model.").replace(".base_layer", "").replace(f".freeze_copy.{adapter}", "")


register("freeze", FreezePeftConfig, FreezeModel)


def peft_config(config: FreezeConfig, model: PreTrainedModel) -> FreezePeftConfig:
    """Copies of what `config` chooses of `model`. They start as the base's, so the outputs do not change.

    Raises:
        UserError: a choice finds nothing in this model, or what it finds has no module of its own.
    """
    names: dict[int, list[str]] = {}  # of each tensor
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    chosen = _chosen(config, model, [name for same in names.values() for name in same])
    if not chosen:
        raise UserError("selects no weights to train", where="last_n_layers", fix="last_n_layers=2, or norms=true")
    groups = [_in_modules(same, model) for same in names.values() if chosen.intersection(same)]
    return FreezePeftConfig(
        target_modules=list(dict.fromkeys(_module(name) for same in groups for name in same)),
        parameters=[same[0] for same in groups],
        tied=[name for same in groups for name in same[1:]],
    )


def _in_modules(same: list[str], model: PreTrainedModel) -> list[str]:
    """Those names of one tensor that belong to modules without submodules, which alone can be wrapped.

    Raises:
        UserError: there is none.
    """
    leaves = [name for name in same if not any(True for _ in model.get_submodule(_module(name)).children())]
    if not leaves:
        kind = type(model.get_submodule(_module(same[0]))).__name__
        raise UserError(
            f"{same[0]} belongs to a {kind}, which has submodules: it cannot be trained alone",
            where="patterns",
            fix="choose other weights; or full fine-tuning: peft=full",
        )
    return leaves


def _chosen(config: FreezeConfig, model: PreTrainedModel, names: list[str]) -> set[str]:
    modules = dict(model.named_modules())
    heads = head_names(model)
    layers = _last_layers(model, config.last_n_layers)
    chosen = {name for name in names if is_under(name, layers)}
    if config.head:
        new = set(getattr(model, "new_weights", ()))
        chosen |= {name for name in names if is_under(name, task_heads(model)) or name in new}
    if config.norms:
        chosen |= {name for name in names if is_norm(modules[_module(name)])}
    if config.embeddings:
        tables = [path for path, module in modules.items() if isinstance(module, nn.Embedding) and not place_of(path)]
        chosen |= {name for name in names if is_under(name, tables) and not is_under(name, heads)}
    for pattern in config.patterns:
        found = {name for name in names if re.search(pattern, name)}
        if not found:
            raise UserError(
                f"{pattern!r} is in no name of a parameter of {type(model).__name__}",
                where="patterns",
                fix=f"names look like {', '.join((names[0], names[len(names) // 2], names[-1]))}",
            )
        chosen |= found
    return chosen


def _last_layers(model: PreTrainedModel, number: int) -> list[str]:
    """Paths of the last `number` layers of each stack.

    Raises:
        UserError: no stack has so many.
    """
    heads = head_names(model)
    stacks = {
        path: len(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not place_of(path) and not is_under(path, heads)
    }
    longest = max(stacks.values(), default=0)
    if number > longest:
        raise UserError(
            f"the model has {longest} layers, not {number}", where="last_n_layers", fix=f"at most {longest}"
        )
    return [f"{path}.{i}" for path, length in stacks.items() for i in range(max(0, length - number), length)]


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
