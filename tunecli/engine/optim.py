"""Optimizers and schedules by name, from torch, bitsandbytes and transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LRScheduler

from tunecli.config.train import Optimizer, Scheduler, TrainConfig, in_steps

Parameters = list[dict[str, Any]]


def build_optimizer(
    model: nn.Module, config: TrainConfig, rate_factors: Mapping[str, float] | None = None
) -> TorchOptimizer:
    """The optimizer of `config.optimizer` over the trainable parameters of `model`.

    Args:
        rate_factors: parameter name -> what `config.learning_rate` is multiplied by, where that is not 1.
    """
    groups = parameter_groups(model.named_parameters(), config.weight_decay, rate_factors)
    for group in groups:
        group["lr"] = config.learning_rate * group.pop("rate_factor")
    return OPTIMIZERS[config.optimizer](groups, config)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, rate_factors: Mapping[str, float] | None = None
) -> Parameters:
    """Two groups for each factor of the learning rate, which is under `rate_factor`, that of 1 first: matrices, which
    decay, and biases, norms and scales, which do not. Empty groups are left out."""
    factors = rate_factors or {}
    trainable = [(factors.get(name, 1.0), parameter) for name, parameter in named if parameter.requires_grad]
    groups = []
    for factor in sorted({factor for factor, _ in trainable}, key=lambda factor: (factor != 1, factor)):
        parameters = [parameter for own, parameter in trainable if own == factor]
        matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
        spared = [parameter for parameter in parameters if parameter.ndim < 2]
        groups.append({"params": matrices, "weight_decay": weight_decay, "rate_factor": factor})
        groups.append({"params": spared, "weight_decay": 0.0, "rate_factor": factor})
    return [group for group in groups if group["params"]]


def _adam(config: TrainConfig) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }


def _adamw(groups: Parameters, config: TrainConfig) -> TorchOptimizer:
    return torch.optim.AdamW(groups, fused=True, **_adam(config))


def _sgd(groups: Parameters, config: TrainConfig) -> TorchOptimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate)


def _adafactor(groups: Parameters, config: TrainConfig) -> TorchOptimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate)


def _bitsandbytes(name: str) -> Callable[[Parameters, TrainConfig], TorchOptimizer]:
    def build(groups: Parameters, config: TrainConfig) -> TorchOptimizer:
        import bitsandbytes as bnb

        return getattr(bnb.optim, name)(groups, **_adam(config))

    return build


OPTIMIZERS: dict[Optimizer, Callable[[Parameters, TrainConfig], TorchOptimizer]] = {
    Optimizer.adamw: _adamw,
    Optimizer.sgd: _sgd,
    Optimizer.adafactor: _adafactor,
    Optimizer.adamw_8bit: _bitsandbytes("AdamW8bit"),
    Optimizer.paged_adamw_32bit: _bitsandbytes("PagedAdamW32bit"),
    Optimizer.paged_adamw_8bit: _bitsandbytes("PagedAdamW8bit"),
}


def build_scheduler(optimizer: TorchOptimizer, config: TrainConfig, *, num_steps: int, done: int) -> LRScheduler:
    """transformers' schedule of that name, with `config.warmup_steps` of linear warm-up.

    Args:
        optimizer: a new one, whose rates no schedule has changed yet.
        done: steps already taken. The rate is a pure function of the step, so no schedule state is saved.
    """
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    name = config.lr_scheduler.value
    warmup = in_steps(config.warmup_steps, num_steps)
    if config.lr_scheduler is Scheduler.constant and warmup:
        name = "constant_with_warmup"
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    extra = {} if name == "constant" else {"num_warmup_steps": warmup}
    if name in ("linear", "cosine"):
        extra["num_training_steps"] = num_steps
    build: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    return build(optimizer, **extra, last_epoch=done - 1)
