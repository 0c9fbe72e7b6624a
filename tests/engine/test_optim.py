"""Schedules: warm-up in steps and as a share of them."""

from __future__ import annotations

import pytest
import torch

from tunecli.config.train import Scheduler, TrainConfig
from tunecli.engine.optim import build_scheduler


def rates(num_steps: int = 20, done: int = 0, **fields) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    config = TrainConfig(learning_rate=1.0, **fields)
    scheduler = build_scheduler(optimizer, config, num_steps=num_steps, done=done)
    found = []
    for _ in range(num_steps - done):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("scheduler", Scheduler)
def test_a_share_is_so_many_steps(scheduler: Scheduler) -> None:
    assert rates(lr_scheduler=scheduler, warmup_steps=0.2) == rates(lr_scheduler=scheduler, warmup_steps=4)
    assert rates(lr_scheduler=scheduler, warmup_steps=0.2)[:4] == [0, 0.25, 0.5, 0.75]
    assert rates(lr_scheduler=scheduler, warmup_steps=0) != rates(lr_scheduler=scheduler, warmup_steps=4)


@pytest.mark.parametrize("scheduler", Scheduler)
def test_the_rate_depends_on_the_step_only(scheduler: Scheduler) -> None:
    whole = rates(lr_scheduler=scheduler, warmup_steps=0.2)
    assert rates(lr_scheduler=scheduler, warmup_steps=0.2, done=7) == whole[7:]
