"""What the tests of our own tuners do to a model."""

from __future__ import annotations

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from tunecli.config.peft import PeftConfig
from tunecli.peft_methods import METHODS

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
