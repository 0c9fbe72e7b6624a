"""Five SGD steps of SFT on a tiny model, on as many processes as this was started on; `test_laws.py` compares them.

Also a program: `accelerate launch ... sgd_steps.py OUT MICRO_BATCH PEFT` writes the parameters of each rank.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny import RandomExamples, batching, causal_lm

from tunecli.config.model import Attention
from tunecli.config.peft import LoraConfig, PeftConfig
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.data.feed import Shuffled
from tunecli.engine.console import Display
from tunecli.engine.distributed import make_accelerator
from tunecli.engine.loop import Progress, Trainer, train
from tunecli.engine.optim import build_optimizer, build_scheduler
from tunecli.engine.recorder import Recorder
from tunecli.engine.signals import StopSignal
from tunecli.models.self_test import choose_policy
from tunecli.peft_methods.composition import inject
from tunecli.stages.sft import SFT

PEFT: dict[str, dict[str, PeftConfig]] = {"full": {}, "lora": {"lora": LoraConfig(r=4)}}
LENGTHS = [9, 4, 14, 6, 5, 3, 11, 8, 2, 7, 13, 5, 6, 10, 4, 9, 3, 12, 8]  # 19: the last batch of the epoch is short
STEPS = 5


def make_stage(accelerator: Accelerator, packed: bool, rows: int | None, tokens: int | None = None) -> SFT:
    return SFT(
        feed=Shuffled(RandomExamples(LENGTHS, names=["a", "b"]), seed=3),
        validation=RandomExamples([5, 9, 4, 3, 8], seed=1),
        evaluator=lambda policy, proceed: ({}, []),
        batching=batching(
            rows=rows,
            tokens=tokens,
            packed=packed,
            process=accelerator.process_index,
            of=accelerator.num_processes,
        ),
        accelerator=accelerator,
        global_batch_size=8,
        num_examples=2 * len(LENGTHS),
    )


def run_steps(
    folder: Path,
    *,
    rows: int | None = 8,
    tokens: int | None = None,
    peft: str = "full",
    attention: Attention = Attention.packed,
    config: TrainConfig | None = None,
) -> tuple[dict[str, torch.Tensor], Trainer]:
    """The trained parameters after `STEPS` steps, and the trainer that took them."""
    accelerator = make_accelerator(cpu=True, mixed_precision="no")
    config = config or TrainConfig(
        optimizer=Optimizer.sgd, lr_scheduler=Scheduler.constant, learning_rate=0.05, max_grad_norm=0
    )
    policy = choose_policy(causal_lm(), attention).policy
    inject(policy.lm, PEFT[peft], seed=0)
    optimizer = build_optimizer(policy, config)
    scheduler = build_scheduler(optimizer, config, num_steps=STEPS, done=0)
    model, prepared = accelerator.prepare(policy, optimizer)
    trainer = Trainer(
        stage=make_stage(accelerator, policy.packed, rows, tokens),
        model=model,
        optimizer=prepared,
        scheduler=scheduler,
        accelerator=accelerator,
        config=config,
        recorder=Recorder(folder, Display(enabled=accelerator.is_main_process), num_steps=STEPS),
        progress=Progress(),
        stop=StopSignal(),
        seed=3,
        num_steps=STEPS,
    )
    train(trainer)
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}, trainer


def main(out: Path, rows: int, peft: str) -> None:
    rank = Accelerator(cpu=True).process_index
    folder = out / f"run_{rank}"
    folder.mkdir(parents=True)
    parameters, trainer = run_steps(folder, rows=rows, peft=peft)
    first = next(iter(make_stage(trainer.accelerator, True, rows).steps(trainer.model)))
    torch.save(
        {
            "parameters": parameters,
            "num_processes": trainer.accelerator.num_processes,
            "rows_of_first_step": [row for batch in first for row in batch.rows],
            "eval": trainer.stage.evaluate(trainer.model, lambda done: True).metrics,
        },
        out / f"rank_{rank}.pt",
    )


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    os._exit(0)  # gloo's threads would now and then outlive the interpreter, which aborts then
