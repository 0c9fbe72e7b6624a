"""One adapter for each row of a batch: several users' or tasks' adapters in one forward pass, in training too.

Which adapter a row is for travels as an argument of the model's forward (`tunecli.models.attention.ADAPTER_OF_ROW`)
down to each layer, which hands it to the adapters inside: a checkpointed layer that runs again in backward gets its
arguments again. Every adapter computes something in every batch, so that distributed training finds a gradient for
each.

LoRA: each adapter's update is taken only in its rows (as S-LoRA, Sheng et al., 2023, but all adapters compute all
rows). Prefixes: each row has its own. Virtual tokens: each adapter has ids of its own, so they need no routing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecli.models.attention import ADAPTER_OF_ROW
from tunecli.peft_methods.layouts import place_of
from tunecli.peft_methods.prefix import PrefixLayer
from tunecli.peft_methods.route import Route


def route_rows(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Make `model`, which has the adapters `names`, read ADAPTER_OF_ROW: an index into `names` for each row."""
    route = Route(list(names))
    layers = {place.layer for path, _ in model.named_modules() if (place := place_of(path))}
    for path, module in model.named_modules():
        # Layers, which may run again in backward, and the models around them, for what is in none of the layers.
        if isinstance(module, PreTrainedModel) or path in layers:
            module.register_forward_pre_hook(partial(_take, route), with_kwargs=True)
        if isinstance(module, LoraLayer):
            for number, name in enumerate(names):
                if name in module.lora_B:
                    module.lora_B[name].register_forward_hook(partial(_only_own_rows, route, number))
        elif isinstance(module, PrefixLayer):
            module.route = route


def _take(route: Route, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    route.rows, route.edges = kwargs.get(ADAPTER_OF_ROW), kwargs.get("cu_seq_lens_q")


def _only_own_rows(route: Route, number: int, layer: nn.Module, args: tuple[Tensor, ...], update: Tensor) -> Tensor:
    return update if route.rows is None else update * route.share(number, update)
