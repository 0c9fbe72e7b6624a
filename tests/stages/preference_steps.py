"""Three SGD steps of the preference stage on a tiny model, on as many processes as this was started on.

Also a program: `accelerate launch ... preference_steps.py OUT LOSS:REFERENCE:MICRO_BATCH ...` writes the parameters
of each rank.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from architectures import model_of
from tiny import batching, causal_lm

from tunecli.config.model import Attention
from tunecli.config.peft import LoraConfig, PeftConfig
from tunecli.config.stage import PolicyModel, PreferenceConfig, PreferenceLoss, ReferenceTime, Task
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Shuffled
from tunecli.data.reading import AnswerTokens
from tunecli.engine.console import Display
from tunecli.engine.distributed import make_accelerator
from tunecli.engine.loop import Progress, Trainer, train
from tunecli.engine.optim import build_optimizer, build_scheduler
from tunecli.engine.recorder import Recorder
from tunecli.engine.signals import StopSignal
from tunecli.engine.stage import Evaluation
from tunecli.models.self_test import choose_policy
from tunecli.models.seq2seq_policy import shifted
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.reference import reference_of
from tunecli.stages.preference import preference_stage
from tunecli.stages.setting import Setting

STEPS = 3
GLOBAL_BATCH = 4
LORA: Mapping[str, PeftConfig] = {"lora": LoraConfig(r=4, lora_alpha=32)}
PAIR, ANSWER = 2, 1
KINDS = {PreferenceLoss.kto: (PAIR, ANSWER, ANSWER)}
"""What the rows of a loss are in turn; of others pairs."""


class RandomAnswers:
    """Prompts of random tokens, each with two answers or one, as `tunecli.data.judged` gives them."""

    def __init__(
        self,
        number: int = 7,
        *,
        kinds: Sequence[int] = (PAIR,),
        two_sides: bool = False,
        soft: bool = False,
        names: Sequence[str] = ("random",),
        seed: int = 0,
    ) -> None:
        """
        Args:
            two_sides: for an encoder-decoder.
            soft: pairs have margins and probabilities.
        """
        self._generator = torch.Generator().manual_seed(seed)
        self.names = list(names)
        self.sources = [i % len(names) for i in range(number)]
        self.adapters = [-1] * number
        self._examples = [self._example(kinds[i % len(kinds)], two_sides, soft) for i in range(number)]

    def _ids(self, low: int, high: int) -> torch.Tensor:
        length = int(torch.randint(low, high, (1,), generator=self._generator))
        return torch.randint(4, 90, (length,), generator=self._generator)

    def _example(self, kind: int, two_sides: bool, soft: bool) -> Encoded:
        prompt, pieces, spans, parts = self._ids(2, 8), [], [], []
        for _ in range(kind):
            answer, start = self._ids(1, 7), sum(map(len, pieces)) + len(prompt)
            pieces += [prompt, answer]
            spans.append([start, start + len(answer)])
            parts += [start, start + len(answer)] if two_sides else [start + len(answer)]
        numbers = tuple(torch.rand(2, generator=self._generator).tolist()) if soft else (0.0, 1.0)
        if kind == ANSWER:
            numbers = (float(torch.rand(1, generator=self._generator) > 0.5),)
        return Encoded(torch.cat(pieces), np.array(spans), parts=tuple(parts[:-1]), numbers=numbers)

    @property
    def lengths(self) -> list[int]:
        return [len(example.input_ids) for example in self._examples]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Encoded:
        return self._examples[index]

    def origin(self, index: int) -> str:
        return f"random row {index + 1}"


def make_trainer(
    folder: Path,
    *,
    stage: PreferenceConfig | None = None,
    examples: RandomAnswers | None = None,
    rows: int | None = 8,
    tokens: int | None = None,
    packed: bool = True,
    trees: bool = True,
    peft: Mapping[str, PeftConfig] = LORA,
    config: TrainConfig | None = None,
    num_steps: int = STEPS,
    architecture: str = "",
) -> Trainer:
    """`architecture`: of an encoder-decoder; empty: a Llama."""
    accelerator = make_accelerator(cpu=True, mixed_precision="no")
    stage = stage or PreferenceConfig()
    stage.language_model = PolicyModel.seq2seq_lm if architecture else PolicyModel.causal_lm
    config = config or TrainConfig(
        optimizer=Optimizer.sgd, lr_scheduler=Scheduler.constant, learning_rate=0.05, max_grad_norm=0
    )
    if architecture:
        policy = choose_policy(model_of(architecture, "seq2seq"), Attention.auto, Task.seq2seq_lm).policy
        read = AnswerTokens(shift=partial(shifted, policy.lm))
    else:
        policy = choose_policy(causal_lm(), Attention.packed if packed else Attention.padded).policy
        read = AnswerTokens()
    inject(policy.lm, peft, seed=0)
    kinds = KINDS.get(stage.loss, (PAIR,))
    examples = examples or RandomAnswers(kinds=kinds, two_sides=bool(architecture), soft=True)
    setting = Setting(
        config=stage,
        feed=Shuffled(examples, seed=3),
        train=examples,
        validation=RandomAnswers(5, kinds=kinds, two_sides=bool(architecture), seed=1),
        evaluator=lambda policy, proceed: Evaluation(),
        batching=replace(
            batching(
                rows=rows,
                tokens=tokens,
                packed=policy.packed,
                process=accelerator.process_index,
                of=accelerator.num_processes,
            ),
            read=read,
            trees=trees,
        ),
        accelerator=accelerator,
        global_batch_size=GLOBAL_BATCH,
        num_examples=num_steps * GLOBAL_BATCH,
        reference=reference_of(policy.lm, peft) if stage.has_reference else None,
        run_dir=folder,
    )
    optimizer = build_optimizer(policy, config)
    scheduler = build_scheduler(optimizer, config, num_steps=num_steps, done=0)
    model, prepared = accelerator.prepare(policy, optimizer)
    return Trainer(
        stage=preference_stage(setting),
        model=model,
        optimizer=prepared,
        scheduler=scheduler,
        accelerator=accelerator,
        config=config,
        recorder=Recorder(folder, Display(enabled=accelerator.is_main_process), num_steps=num_steps),
        progress=Progress(),
        stop=StopSignal(),
        seed=3,
        num_steps=num_steps,
    )


def trained_by(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The trained parameters after all steps."""
    train(trainer)
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def case(name: str) -> tuple[PreferenceConfig, int]:
    """From LOSS:REFERENCE:MICRO_BATCH."""
    loss, reference, rows = name.split(":")
    time = ReferenceTime(reference) if reference else None
    return PreferenceConfig(loss=PreferenceLoss(loss), reference=time), int(rows)


def main(out: Path, name: str) -> None:
    stage, rows = case(name)
    trainer = make_trainer(out / name, stage=stage, rows=rows)  # all ranks share a run directory
    rank = trainer.accelerator.process_index
    (out / name).mkdir(exist_ok=True)
    parameters = trained_by(trainer)
    found = trainer.stage.evaluate(trainer.model, lambda done: True).metrics
    torch.save({"parameters": parameters, "eval": found}, out / f"{name}_{rank}.pt")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    for each in sys.argv[2:]:
        main(Path(sys.argv[1]), each)
    os._exit(0)  # gloo's threads would now and then outlive the interpreter, which aborts then
