"""LoRA+: B learns faster than A, as in peft's own optimizer."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from tiny import causal_lm
from tuners import trained

from tunecli.config.peft import BitFitConfig, LoraConfig, PeftConfig
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.engine.optim import build_optimizer, build_scheduler
from tunecli.peft_methods.composition import inject, rate_factors

RATE, RATIO = 1e-3, 16


def rates(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def with_ratio(methods: dict[str, PeftConfig], **fields) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = causal_lm()
    inject(model, methods, seed=0)
    config = TrainConfig(learning_rate=RATE, **fields)
    return model, build_optimizer(model, config, rate_factors(model, methods))


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_rates_are_pefts(use_dora: bool) -> None:
    ours, optimizer = with_ratio({"lora": LoraConfig(r=4, loraplus_lr_ratio=RATIO, use_dora=use_dora)})
    mine = {name.replace("tune_lora", "default"): rate for name, rate in rates(ours, optimizer).items()}
    targets = sorted({name.split(".")[4] for name in trained(ours)})
    config = peft.LoraConfig(r=4, target_modules=targets, use_dora=use_dora)
    wrapped = peft.get_peft_model(causal_lm(), config)
    theirs = create_loraplus_optimizer(wrapped, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO)
    assert mine == {name.removeprefix("base_model.model."): rate for name, rate in rates(wrapped, theirs).items()}
    assert set(mine.values()) == {RATE, RATE * RATIO}


def test_only_its_own_adapter_learns_faster() -> None:
    methods = {
        "lora": LoraConfig(r=4, loraplus_lr_ratio=RATIO),
        "lora2": LoraConfig(r=4),
        "b": BitFitConfig(add_missing=True),
    }
    found = rates(*with_ratio(methods))
    fast = {name for name, rate in found.items() if rate != RATE}
    assert fast and all("lora_B.tune_lora." in name for name in fast)
    assert len(fast) == sum("lora_A.tune_lora." in name for name in found)


@pytest.mark.parametrize("name", list(Optimizer))
def test_every_optimizer_and_schedule_keeps_the_ratio(name: Optimizer) -> None:
    model, optimizer = with_ratio({"lora": LoraConfig(r=4, loraplus_lr_ratio=RATIO)}, optimizer=name)
    config = TrainConfig(learning_rate=RATE, lr_scheduler=Scheduler.linear, warmup_steps=2)
    scheduler = build_scheduler(optimizer, config, num_steps=8, done=3)
    assert scheduler.base_lrs[0] == RATE  # what metrics call the learning rate
    start = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    for step in range(3, 6):
        slow, fast = (group["lr"] for group in optimizer.param_groups)
        assert slow == pytest.approx(RATE * (8 - step) / 6) and fast == pytest.approx(RATIO * slow)
        for parameter in trained(model).values():
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
        scheduler.step()
    if name is Optimizer.adafactor:  # steps in proportion to the weights
        return
    moved = {name: (parameter - start[name]).abs().mean().detach() for name, parameter in trained(model).items()}
    a, b = (
        torch.stack([move for name, move in moved.items() if matrix in name]).mean()
        for matrix in ("lora_A", "lora_B")
    )
    assert (b / a).item() == pytest.approx(RATIO, rel=0.01)
