"""Processes: the accelerator, gradient synchronisation, sums over ranks, determinism."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn


def make_accelerator(*, cpu: bool, mixed_precision: str) -> Accelerator:
    """One at a time in each process; the next may compute in another precision. `gradient_accumulation_steps` stays
    1, else `backward` would divide by it again."""
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=1,
        # Buffers are constants of the architecture; broadcasting them in every forward would only be able to hang.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


@contextmanager
def gradient_sync(accelerator: Accelerator, model: nn.Module, *, last: bool) -> Iterator[None]:
    """Reduce gradients over ranks in the last micro-batch of a step only."""
    accelerator.gradient_state._set_sync_gradients(last)
    with nullcontext() if last else accelerator.no_sync(model):
        yield


def sum_over_ranks(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """One all-reduce for all values, in float64 so that token counts stay exact."""
    if accelerator.num_processes == 1:
        return values
    local = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    summed = accelerator.reduce(local, "sum")
    return dict(zip(values, summed.tolist(), strict=True))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the randomness of a step (dropout, sampling) a pure function of seed, step and rank.

    No random state has to be saved then: a resumed run draws what the uninterrupted one would have drawn, and
    nothing that happens between two steps (evaluation, saving) can shift it.
    """
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def make_deterministic(*, cpu: bool) -> None:
    """On a CPU the same run gives the same bits. On CUDA deterministic kernels are slow or missing: not set."""
    if cpu:
        torch.use_deterministic_algorithms(True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
