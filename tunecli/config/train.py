"""The `train` section: the optimizer and the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum


class Optimizer(Enum):
    adamw = "adamw"
    sgd = "sgd"
    adafactor = "adafactor"
    adamw_8bit = "adamw_8bit"
    paged_adamw_32bit = "paged_adamw_32bit"
    paged_adamw_8bit = "paged_adamw_8bit"


class Scheduler(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Precision(Enum):
    """What the arithmetic runs in. Trained parameters and optimizer state are fp32 in every case."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    max_steps: int | None = None
    """Optimizer steps; empty: as many as `num_epochs` needs. 0 evaluates the model as it is and saves no weights."""
    num_epochs: float = 1.0
    """Passes over the data when `max_steps` is empty."""
    max_minutes: float | None = None
    """Save a checkpoint and stop when the run has taken so long, resumes not counted anew."""
    global_batch_size: int = 16
    """Examples per optimizer step over all processes. It never depends on the number of processes."""
    micro_batch_size: int | None = None
    """Examples per forward; the number of micro-batches is derived and printed."""
    micro_batch_tokens: int | None = None
    """Tokens per forward instead. With neither set: 2048, or `data.max_length` where that is more."""
    learning_rate: float = 2e-5
    lr_scheduler: Scheduler = Scheduler.cosine
    warmup_steps: float = 0
    """Steps of linear warm-up; below 1, a share of all steps: 0.03."""
    optimizer: Optimizer = Optimizer.adamw
    weight_decay: float = 0.0
    """Spares biases, norms and every other parameter of one dimension."""
    pull_to_start: float = 0.0
    """Pulls what is trained back to where it started, by this share of the way times the learning rate in each step
    (L2-SP), so that less is forgotten; a new head is spared. Takes the memory of one more copy."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 does not clip."""
    precision: Precision = Precision.auto
    log_every: int = 1
    eval_every: int | None = None
    """Validation loss every so many steps; it is always computed at the end when there is validation data."""
    save_every: int | None = None
    """Checkpoint every so many steps; one is always written at the end."""
    keep_last: int = 2
    """Number of checkpoints kept."""
    best_metric: str = "eval/loss"
    """What `keep_best` and `early_stopping` go by; losses and perplexities should fall, anything else should rise."""
    keep_best: bool = False
    """The result is the model with the best `best_metric` of all evaluations, not the last one."""
    early_stopping: int | None = None
    """Stop after so many evaluations in a row without a better `best_metric`."""
    trackers: list[str] = field(default_factory=list)
    """tensorboard, wandb, mlflow, trackio: where metrics go besides metrics.jsonl."""


def in_steps(value: float, num_steps: int) -> int:
    """A number of steps that is given as one or, below 1, as a share of all steps."""
    return math.ceil(value * num_steps) if value < 1 else int(value)


def falls(metric: str) -> bool:
    """Whether less of it is better."""
    name = metric.removeprefix("eval/")
    if name.startswith(("rewards/rejected", "logps/rejected")):
        return True
    return "loss" in metric or "perplexity" in metric or name.partition("/")[0] in ("mse", "ece", "kl")
