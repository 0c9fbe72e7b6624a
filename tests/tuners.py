"""What the tests of our own tuners do to a model."""

from __future__ import annotations

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from tunecli.config.peft import PeftConfig
from tunecli.peft_methods import METHODS
from tunecli.peft_methods.virtual_tokens import VirtualTokensLayer

ADAPTER = "tune_x"


def adapted(model: PreTrainedModel, config: PeftConfig, adapter: str = ADAPTER) -> PreTrainedModel:
    """With the method that `config` is of, in place."""
    return inject_adapter_in_model(METHODS[config.method](config, model), model, adapter_name=adapter)


def trained(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def disturbed(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Trained parameters moved away from their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def switch(model: PreTrainedModel, *, on: bool) -> None:
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)


def virtual_tokens(model: torch.nn.Module) -> list[int]:
    """Ids of those of the adapters that are on."""
    layers = [module for module in model.modules() if isinstance(module, VirtualTokensLayer)]
    return [
        token
        for layer in layers
        for name in layer.adapters_on()
        for token in layer.virtual_tokens_adapter[name].token_ids.tolist()
    ]


def text_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Of the text `ids` behind the virtual tokens of the adapters that are on, if there are any; in eval mode."""
    virtual = torch.tensor(virtual_tokens(model), dtype=torch.int64).expand(len(ids), -1)
    with torch.no_grad():
        return model.eval()(torch.cat([virtual, ids], dim=1)).logits[:, -ids.shape[1] :]


def gradients(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in trained(model).items()}


def losses(model: PreTrainedModel, inputs: dict[str, Tensor], steps: int = 8) -> list[float]:
    """Before each of `steps` steps of AdamW."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    seen = []
    for _ in range(steps):
        loss = model.train()(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


def generated(model: PreTrainedModel, ids: Tensor, *, cache: bool = True) -> Tensor:
    return model.eval().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=cache
    )
