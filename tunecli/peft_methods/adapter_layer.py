"""What every part of a bottleneck method shares: a wrapper with one small network for each adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from tunecli.peft_methods.tuner import UnmergeableLayer


class AdapterLayer(UnmergeableLayer):
    """A module and one small network for each adapter."""

    adapter_layer_names = ("bottleneck_adapter",)
    why_unmergeable = "no weight of the model does what the non-linearity of a bottleneck adapter does"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_adapter = nn.ModuleDict()

    def on(self) -> list[Any]:
        """The networks that are switched on, in their order."""
        return [self.bottleneck_adapter[name] for name in self.adapters_on()]
