"""The one training loop, for every stage.

The gradient of a step is the sum over all micro-batches of all ranks divided once by the global number of units, so
it does not depend on how the batch was cut up.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tunecli.config.errors import TrainingStopped, UserError
from tunecli.config.train import TrainConfig, falls
from tunecli.engine.batch import Batch
from tunecli.engine.checkpoint import forget_worse, save_best, save_checkpoint
from tunecli.engine.distributed import gradient_sync, seed_step, sum_over_ranks
from tunecli.engine.recorder import Recorder, peak_memory_bytes
from tunecli.engine.signals import StopSignal
from tunecli.engine.stage import Stage, means
from tunecli.engine.step_hook import StepHook, hook_state


@dataclass(slots=True)
class Progress:
    """How far the run is; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    """real tokens so far, all ranks"""
    seconds: float = 0.0
    """since the start, over all resumes"""
    best_step: int = 0
    """of the best evaluation after step 0; 0 before there is one"""
    best_value: float | None = None
    without_better: int = 0
    """evaluations since"""


@dataclass(slots=True)
class Trainer:
    """Everything that the steps of one run share; plain data, no behaviour to override."""

    stage: Stage
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    accelerator: Accelerator
    config: TrainConfig
    recorder: Recorder
    progress: Progress
    stop: StopSignal
    seed: int
    num_steps: int
    hooks: Sequence[StepHook] = ()


class _Meter:
    """Averages and speeds since the last logged line. Evaluation and saving are not counted as time."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    def count(self, sums: Mapping[str, float]) -> None:
        self._steps += 1
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    @property
    def seconds(self) -> float:
        return self._seconds + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._seconds = self.seconds
        yield
        self._since = time.perf_counter()

    def means(self) -> dict[str, float]:
        return means({name: value for name, value in self._sums.items() if name not in ("tokens", "stop", "late")})

    def speeds(self) -> dict[str, float]:
        return {
            "tokens_per_second": self._sums["tokens"] / self.seconds,
            "seconds_per_step": self.seconds / self._steps,
        }


def train(trainer: Trainer) -> bool:
    """Train up to `num_steps`. Returns whether it got there; False: a signal stopped it, after a checkpoint.

    Raises:
        TrainingStopped: a loss was not finite; on all ranks, before the weights were touched.
    """
    config, progress = trainer.config, trainer.progress
    steps = trainer.stage.steps(trainer.model)
    meter = _Meter()
    started = time.perf_counter() - progress.seconds
    trainer.model.train()
    trainer.recorder.display.start(step=progress.step, num_steps=trainer.num_steps)
    try:
        if progress.step == 0 and (config.eval_every is not None or trainer.num_steps == 0):
            _evaluate(trainer, meter)  # what everything after is compared with
            if _stop_requested(trainer):
                if trainer.num_steps > 0:
                    _save(trainer, meter)
                return False
        while progress.step < trainer.num_steps:
            step = progress.step + 1
            seed_step(trainer.seed, step, trainer.accelerator.process_index)
            sums, grad_norm = _step(trainer, next(steps), step)
            progress.step = step
            progress.tokens += int(sums["tokens"])
            progress.seconds = time.perf_counter() - started
            last = step == trainer.num_steps or sums["late"] > 0
            stopping = sums["stop"] > 0 and not last
            meter.count(sums)
            if last or stopping or step % config.log_every == 0:
                _log(trainer, meter, grad_norm)
            if last or _due(config.eval_every, step):
                _evaluate(trainer, meter)
                last = last or _out_of_patience(trainer)
            if last or stopping or _due(config.save_every, step):
                _save(trainer, meter)
            if last and step < trainer.num_steps:
                _say_why(trainer)
            if last or stopping:
                return last
        return True
    finally:
        trainer.recorder.display.stop()


def _step(trainer: Trainer, microbatches: list[Batch], step: int) -> tuple[dict[str, float], float]:
    """One optimizer step. Returns sums over all ranks (of loss, metrics, weight, tokens, stop, late) and the gradient
    norm."""
    accelerator, model, stage = trainer.accelerator, trainer.model, trainer.stage
    weights = [stage.weight(batch) for batch in microbatches]
    weight = accelerator.reduce(torch.stack(weights).sum().to(accelerator.device), "sum").clamp(min=1)
    totals: list[dict[str, Tensor]] = []
    for i, batch in enumerate(microbatches):
        last = i == len(microbatches) - 1
        with gradient_sync(accelerator, model, last=last):
            output = stage.loss(model, batch.to(accelerator.device))
            # Ranks average their gradients, so multiplying by their number leaves sum / global weight; and of what
            # each of them adds once, the penalties, one.
            penalties = [hook.penalty() for hook in trainer.hooks] if last else []
            accelerator.backward(output.total * accelerator.num_processes / weight + sum(penalties))
        totals.append(output.sums(weights[i]))
    sums = sum_over_ranks(
        accelerator,
        {name: torch.stack([total[name] for total in totals]).sum().item() for name in totals[0]}
        | {"tokens": sum(batch.num_tokens for batch in microbatches), "stop": float(trainer.stop.requested)}
        | {"late": float(_late(trainer))},
    )
    if not math.isfinite(sums["loss"]):
        _stop_non_finite(trainer, microbatches, [total["loss"].item() for total in totals], step)
    grad_norm = accelerator.clip_grad_norm_(
        [p for p in model.parameters() if p.requires_grad], trainer.config.max_grad_norm or math.inf
    )
    trainer.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:  # as fp16 does where gradients overflow
        for hook in trainer.hooks:
            hook.after_step(step)
    trainer.scheduler.step()
    trainer.optimizer.zero_grad()
    return sums, float(grad_norm)


def _stop_non_finite(trainer: Trainer, microbatches: list[Batch], losses: list[float], step: int) -> None:
    """All ranks come here together. Each writes what it was being trained on, then the run ends."""
    rank = trainer.accelerator.process_index
    suspects = [
        {"loss": str(loss), "examples": trainer.stage.describe(batch)}
        for batch, loss in zip(microbatches, losses, strict=True)
        if not math.isfinite(loss)
    ]
    report = trainer.recorder.run_dir / f"non_finite_step_{step}_rank_{rank}.json"
    if suspects:
        report.write_text(json.dumps(suspects, indent=2, ensure_ascii=False))
    trainer.accelerator.wait_for_everyone()
    reports = sorted(path.name for path in trainer.recorder.run_dir.glob(f"non_finite_step_{step}_rank_*.json"))
    raise TrainingStopped(
        f"the loss of step {step} is not finite; the weights were left as after step {step - 1}.\n"
        f"  trained on: see {', '.join(reports)} in {trainer.recorder.run_dir}",
        fix="lower train.learning_rate, set train.precision=fp32, or look at the rows named there",
    )


def _log(trainer: Trainer, meter: _Meter, grad_norm: float) -> None:
    progress = trainer.progress
    trainer.recorder.training(
        {
            "step": progress.step,
            **meter.means(),
            "learning_rate": _rate_of_last_step(trainer),
            "grad_norm": grad_norm,
            "tokens": progress.tokens,
            **meter.speeds(),
            "seconds": progress.seconds,
            "memory_peak_bytes": peak_memory_bytes(),
        }
    )
    meter.reset()


def _rate_of_last_step(trainer: Trainer) -> float:
    """The schedule has moved on already; ask it for the step that was just taken."""
    scheduler, step = trainer.scheduler, trainer.progress.step
    return scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step - 1)  # type: ignore[attr-defined]


def _evaluate(trainer: Trainer, meter: _Meter) -> None:
    with meter.paused():
        trainer.model.eval()
        display = trainer.recorder.display

        def proceed(done: float) -> bool:
            display.evaluating(done)
            return not _stop_requested(trainer)

        found = trainer.stage.evaluate(trainer.model, proceed)
        trainer.model.train()
        if found.metrics:
            trainer.recorder.evaluation({"step": trainer.progress.step, **found.metrics}, found.right)
            _compare_with_best(trainer, found.metrics)
        trainer.recorder.samples(trainer.progress.step, found.samples)


def _compare_with_best(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Note the best evaluation of the trained model, and keep its weights where they are to be the result."""
    config, progress = trainer.config, trainer.progress
    if not config.keep_best and config.early_stopping is None:
        return
    if config.best_metric not in metrics:
        fix = f"train.best_metric is one of {', '.join(metrics)}"
        raise UserError(f"no evaluation gives {config.best_metric!r}", where="train.best_metric", fix=fix)
    value = metrics[config.best_metric]
    if progress.step == 0:
        return
    sign = 1 if falls(config.best_metric) else -1
    if progress.best_value is not None and sign * value >= sign * progress.best_value:
        progress.without_better += 1
        return
    progress.best_step, progress.best_value, progress.without_better = progress.step, value, 0
    if config.keep_best and trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_best(trainer.recorder.best, model, progress.step)


def _out_of_patience(trainer: Trainer) -> bool:
    patience = trainer.config.early_stopping
    return patience is not None and trainer.progress.without_better >= patience


def _late(trainer: Trainer) -> bool:
    minutes = trainer.config.max_minutes
    return minutes is not None and trainer.progress.seconds >= 60 * minutes


def _say_why(trainer: Trainer) -> None:
    config, progress = trainer.config, trainer.progress
    why = f"train.max_minutes={config.max_minutes:g} are over" if config.max_minutes is not None else ""
    if _out_of_patience(trainer):
        best = f"{config.best_metric} {progress.best_value:.4f} at step {progress.best_step}"
        why = f"no better {config.best_metric} in {progress.without_better} evaluations; the best: {best}"
    trainer.recorder.display.note(f"ends after step {progress.step} of {trainer.num_steps}: {why}", style="yellow")


def _stop_requested(trainer: Trainer) -> bool:
    """On any rank; all ranks ask together."""
    return sum_over_ranks(trainer.accelerator, {"stop": float(trainer.stop.requested)})["stop"] > 0


def _save(trainer: Trainer, meter: _Meter) -> None:
    with meter.paused():
        accelerator = trainer.accelerator
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        if accelerator.is_main_process:
            save_checkpoint(
                trainer.recorder.checkpoints,
                step=trainer.progress.step,
                model=accelerator.unwrap_model(trainer.model),
                optimizer=trainer.optimizer.optimizer,  # type: ignore[attr-defined]
                state={"progress": asdict(trainer.progress), "stage": trainer.stage.state_dict(), "scaler": scaler},
                keep_last=trainer.config.keep_last,
                hooks=hook_state(trainer.hooks),
            )
            forget_worse(trainer.recorder.best, trainer.progress.best_step)
        accelerator.wait_for_everyone()


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
