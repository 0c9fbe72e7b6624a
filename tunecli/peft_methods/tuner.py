"""What our own tuners share: a type among peft's, a layer that wraps a module, and the model that puts it in place.

With these a method of ours is to peft what LoRA is: injected into the plain transformers model, switched, saved as a
standard folder, and loaded by `PeftModel.from_pretrained` as soon as this package has been imported.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn

from tunecli.config.errors import UserError


@dataclass
class TunerConfig(peft.PeftConfig):
    """What peft saves for a method of ours; the fields that peft reads of every method's configuration."""

    target_modules: list[str] | None = None
    """paths in the model (or endings of them) of the modules that are wrapped"""
    exclude_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    """modules of the base, such as a new head, that are trained and saved whole"""

    def plain(self) -> TunerConfig:
        """Of what is left when training is over."""
        return self


class TunerLayer(nn.Module, BaseTunerLayer):
    """A module and the adapters that change what it returns.

    The module's weights are never touched, so they may be quantised. It may be a composite, whose attributes its
    parent goes on reading through this layer.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not set yet
                raise
            return getattr(self.base_layer, name)

    def adapters_on(self) -> list[str]:
        """Names of the adapters in this layer that change its output, in the order in which they do."""
        if self.disable_adapters:
            return []
        here = self._get_available_adapters()
        return [name for name in self.active_adapters if name in here and name not in self.merged_adapters]

    def base_output(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.base_layer(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise UserError(
                f"{type(self.get_base_layer()).__name__} returns a {type(output).__name__}: no adapter can follow",
                where="target_modules",
                fix="name modules that return one tensor, such as linear layers",
            )
        return output


class UnmergeableLayer(TunerLayer):
    """One whose change no weight of the model can stand for."""

    why_unmergeable: str

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        raise UserError(
            f"cannot be merged: {self.why_unmergeable}",
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
        return self.get_base_layer()


class TunerModel(BaseTuner):
    """Wraps the target modules of a configuration in layers of the class `tuner_layer_cls`."""

    target_module_mapping: dict[str, list[str]] = {}

    def layer_class(self, config: Any, path: str) -> type[TunerLayer]:
        """What to wrap the module at `path` in: a kind of `tuner_layer_cls`."""
        return self.tuner_layer_cls

    @abstractmethod
    def add_to_layer(self, layer: TunerLayer, adapter_name: str, config: Any, path: str) -> None:
        """Give `layer`, which is at `path`, new parameters."""

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
        layer_class = self.layer_class(peft_config, current_key)
        known = isinstance(target, layer_class)
        layer = target if known else layer_class(target)
        self.add_to_layer(layer, adapter_name, peft_config, current_key)
        if not known:
            self._replace_module(parent, target_name, layer, target)

    def _post_injection_hook(self, model: nn.Module, config: TunerConfig, adapter_name: str) -> None:
        if isinstance(config.target_modules, set):  # peft's short form of a long list, saved in random order
            config.target_modules = sorted(config.target_modules)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The key in a checkpoint. peft's own leaves the name in where adapters are modules of several layers."""
        for container in cls.tuner_layer_cls.adapter_layer_names:
            key = f"{key}.".replace(f".{container}.{adapter_name}.", f".{container}.").removesuffix(".")
        return key

    def _check_tied_modules(self, model: nn.Module, peft_config: TunerConfig) -> None:
        """peft's own warns that nothing ties what is put on tied embeddings; ours see to it themselves."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """peft's own needs a weight, which composite modules do not have."""
        setattr(parent, child_name, new_module)


def register(name: str, config_class: type[TunerConfig], model_class: type[TunerModel]) -> None:
    """Make the method known to peft, once, as the type `name` in capitals."""
    if _peft_type(name.upper()) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_class, model_cls=model_class)


def _peft_type(name: str) -> PeftType:
    """The member `name` of peft's enum of methods, which is closed: peft asks authors to edit its source."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        type.__setattr__(PeftType, name, member)  # the enum's own refuses
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType.__members__[name]


def in_width(module: nn.Module) -> int | None:
    """Of a linear layer's input; None: it is no linear layer. transformers' Conv1D (GPT-2) has names of its own."""
    return getattr(module, "in_features", getattr(module, "nx", None))


def out_width(module: nn.Module) -> int | None:
    """Of a linear layer's output; None: it is no linear layer."""
    return getattr(module, "out_features", getattr(module, "nf", None))


def device_of(module: nn.Module) -> torch.device | None:
    """Where the parameters of `module` are; None: it has none."""
    parameter = next(module.parameters(), None)
    return None if parameter is None else parameter.device


def innermost(wrapper: BaseTunerLayer) -> BaseTunerLayer:
    """Of wrappers around wrappers, the one that holds the base's own module."""
    while isinstance(wrapper.base_layer, BaseTunerLayer):
        wrapper = wrapper.base_layer
    return wrapper


def base_of(wrapper: BaseTunerLayer) -> nn.Module:
    """The base's own module. peft's `get_base_layer` gives what stands in for it, if a layer says so (`freeze`)."""
    module: nn.Module = wrapper
    while isinstance(module, BaseTunerLayer):
        module = module._modules["base_layer"]
    return module
