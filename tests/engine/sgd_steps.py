"""Five SGD steps of SFT on a tiny model, on as many processes as this was started on; `test_laws.py` compares them.

Also a program: `accelerate launch ... sgd_steps.py OUT PEFT:MICRO_BATCH ...` writes the parameters of each rank.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from architectures import model_of
from tiny import RandomExamples, batching, causal_lm
from transformers import PreTrainedModel
from tuners import disturbed

from tests.peft_methods.test_grid import SMALL
from tunecli.config.model import Attention
from tunecli.config.peft import PEFT_SCHEMAS, AdaLoraConfig, Ia3Config, LoraConfig, LoraInit, PeftConfig
from tunecli.config.stage import Seq2SeqConfig, SFTConfig, Task
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.data.feed import Shuffled
from tunecli.data.reading import SourceTarget, next_tokens
from tunecli.engine.console import Display
from tunecli.engine.distributed import make_accelerator
from tunecli.engine.loop import Progress, Trainer, train
from tunecli.engine.optim import build_optimizer, build_scheduler
from tunecli.engine.recorder import Recorder
from tunecli.engine.signals import StopSignal
from tunecli.engine.stage import Evaluation
from tunecli.models.self_test import choose_policy
from tunecli.models.seq2seq_policy import shifted
from tunecli.peft_methods.composition import inject, step_hooks
from tunecli.peft_methods.saving import save_adapters
from tunecli.peft_methods.token_ids import token_ids
from tunecli.stages.seq2seq import seq2seq
from tunecli.stages.setting import Setting
from tunecli.stages.sft import sft
from tunecli.stages.supervised import Supervised

METHODS = {method: {method: schema(**SMALL.get(method, {}))} for method, schema in PEFT_SCHEMAS.items()}
PEFT: dict[str, dict[str, PeftConfig]] = METHODS | {
    "full": {},
    "pissa": {"lora": LoraConfig(r=4, init_lora_weights=LoraInit.pissa)},
    "adalora": {"adalora": AdaLoraConfig(init_r=4, target_r=2, deltaT=1, tinit=1, tfinal=1)},
    "together": {"lora": LoraConfig(r=4), "ia3": Ia3Config(), "second": LoraConfig(r=2)},
    "on_top": {"lora": LoraConfig(init_from="one", freeze=True), "second": LoraConfig(r=4)},
    "t5": {},
    "bart_lora": {"lora": LoraConfig(r=4)},
}
ENCODER_DECODERS = {"t5": "t5", "bart_lora": "bart"}
"""entries that train an encoder-decoder, in place of a Llama"""
LENGTHS = [9, 4, 14, 6, 5, 3, 11, 8, 2, 7, 13, 5, 6, 10, 4, 9, 3, 12, 8]  # 19: the last batch of the epoch is short
STEPS = 5


def make_model(peft: str) -> PreTrainedModel:
    return model_of(ENCODER_DECODERS[peft], "seq2seq") if peft in ENCODER_DECODERS else causal_lm()


def make_stage(
    accelerator: Accelerator, packed: bool, rows: int | None, tokens: int | None = None, peft: str = "full"
) -> Supervised:
    virtual = [token for ids in token_ids(PEFT[peft], None).values() for token in ids]
    pairs = peft in ENCODER_DECODERS
    read = SourceTarget(shift=partial(shifted, make_model(peft))) if pairs else next_tokens
    setting = Setting(
        config=Seq2SeqConfig() if pairs else SFTConfig(),
        feed=Shuffled(RandomExamples(LENGTHS, names=["a", "b"], virtual=virtual), seed=3),
        validation=RandomExamples([5, 9, 4, 3, 8], seed=1, virtual=virtual),
        evaluator=lambda policy, proceed: Evaluation(),
        batching=replace(
            batching(
                rows=rows,
                tokens=tokens,
                packed=packed and not pairs,
                process=accelerator.process_index,
                of=accelerator.num_processes,
            ),
            read=read,
        ),
        accelerator=accelerator,
        global_batch_size=8,
        num_examples=2 * len(LENGTHS),
    )
    return seq2seq(setting) if pairs else sft(setting)


def starts(folder: Path, peft: str) -> dict[str, Path]:
    """A trained adapter for the entries that start from one."""
    names = [name for name, method in PEFT[peft].items() if method.init_from]
    lm = causal_lm()
    inject(lm, {name: LoraConfig(r=4) for name in names}, seed=1)
    if names:
        save_adapters(disturbed(lm), names, folder / "one", base="somewhere")
    return {name: folder / "one" / name for name in names}


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
    if peft in ENCODER_DECODERS:
        policy = choose_policy(make_model(peft), Attention.auto, Task.seq2seq_lm).policy
    else:
        policy = choose_policy(make_model(peft), attention).policy
    inject(policy.lm, PEFT[peft], seed=0, starts=starts(folder, peft))
    optimizer = build_optimizer(policy, config)
    scheduler = build_scheduler(optimizer, config, num_steps=STEPS, done=0)
    model, prepared = accelerator.prepare(policy, optimizer)
    trainer = Trainer(
        stage=make_stage(accelerator, policy.packed, rows, tokens, peft),
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
        hooks=step_hooks(policy.lm, PEFT[peft], STEPS),
    )
    train(trainer)
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}, trainer


def main(out: Path, rows: int, peft: str) -> None:
    rank = Accelerator(cpu=True).process_index
    folder = out / f"run_{rank}_{peft}_{rows}"
    folder.mkdir(parents=True)
    parameters, trainer = run_steps(folder, rows=rows, peft=peft)
    first = next(iter(make_stage(trainer.accelerator, True, rows, peft=peft).steps(trainer.model)))
    torch.save(
        {
            "parameters": parameters,
            "num_processes": trainer.accelerator.num_processes,
            "rows_of_first_step": [row for batch in first for row in batch.rows],
            "eval": trainer.stage.evaluate(trainer.model, lambda done: True).metrics,
        },
        out / f"{peft}:{rows}_{rank}.pt",
    )


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    for case in sys.argv[2:]:
        peft, _, rows = case.partition(":")
        main(Path(sys.argv[1]), int(rows), peft)
    os._exit(0)  # gloo's threads would now and then outlive the interpreter, which aborts then
