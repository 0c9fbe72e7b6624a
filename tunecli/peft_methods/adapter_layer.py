"""What every part of a bottleneck method shares: a wrapper whose change no weight of the model can stand for."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from tunecli.config.errors import UserError
from tunecli.peft_methods.tuner import TunerLayer


class AdapterLayer(TunerLayer):
    """A module and one small network for each adapter."""

    adapter_layer_names = ("bottleneck_adapter",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_adapter = nn.ModuleDict()

    def on(self) -> list[Any]:
        """The networks that are switched on, in their order."""
        return [self.bottleneck_adapter[name] for name in self.adapters_on()]

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
        return self.get_base_layer()
