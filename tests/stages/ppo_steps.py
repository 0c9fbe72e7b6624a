"""SGD steps of PPO on a tiny model, on as many processes as this was started on; `test_ppo.py` compares them.

Also a program: `accelerate launch ... ppo_steps.py OUT ADVANTAGE:PEFT ...` writes what each rank came to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from architectures import model_of
from tiny import VOCABULARY, batching, causal_lm, scoring_lm

from tunecli.config.evaluation import EvaluationConfig
from tunecli.config.model import Attention
from tunecli.config.peft import LoraConfig, PeftConfig
from tunecli.config.stage import Advantage, PolicyModel, PPOConfig, Task
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Shuffled
from tunecli.data.reading import SourceTarget, next_tokens
from tunecli.engine.console import Display
from tunecli.engine.distributed import make_accelerator
from tunecli.engine.loop import Progress, Trainer, train
from tunecli.engine.optim import build_optimizer, build_scheduler
from tunecli.engine.recorder import Recorder
from tunecli.engine.signals import StopSignal
from tunecli.evaluation.evaluator import Evaluator
from tunecli.models.builtin import byte_tokenizer
from tunecli.models.policy import add_value_head
from tunecli.models.self_test import choose_policy, choose_value_model
from tunecli.models.seq2seq_policy import shifted
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.reference import reference_of
from tunecli.rewards import WeightedSum
from tunecli.stages.ppo import PPO, ppo
from tunecli.stages.setting import Setting

SGD = TrainConfig(optimizer=Optimizer.sgd, lr_scheduler=Scheduler.constant, learning_rate=0.05, max_grad_norm=0)
SMALL = {"rollout_batch_size": 8, "num_ppo_epochs": 2, "max_new_tokens": 6}
LORA = {"lora": LoraConfig(r=4)}
PEFT: dict[str, dict[str, PeftConfig]] = {"full": {}, "lora": LORA, "t5": {}, "lora and value model": LORA}


class Prompts:
    """Random tokens to be answered."""

    def __init__(self, lengths: list[int], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._ids = [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths]
        self.lengths = np.array(lengths)
        self.names = ["prompts"]
        self.sources = np.zeros(len(lengths), np.int64)
        self.adapters = np.full(len(lengths), -1)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Encoded:
        columns = json.dumps({"prompt": f"prompt {index}", "number": index})
        return Encoded(self._ids[index], np.zeros((0, 2), np.int32), columns=columns)

    def origin(self, index: int) -> str:
        return f"prompt {index + 1}"


def vowels(prompts: list[Any], completions: list[str], columns: list[dict[str, Any]]) -> list[float]:
    """Something that depends on answer and prompt."""
    return [
        sum(letter in "aeiouAEIOU02468" for letter in said) + 0.1 * row["number"]
        for said, row in zip(completions, columns, strict=True)
    ]


@dataclass
class Ready:
    """A stage on a tiny model, and what trains it."""

    policy: Any
    stage: PPO
    accelerator: Accelerator
    config: TrainConfig
    prompts: Prompts
    folder: Path
    steps: int
    optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(self.policy, self.config)
        self.model, self.prepared = self.accelerator.prepare(self.policy, self.optimizer)

    def train(self, done: int = 0, until: int | None = None) -> dict[str, torch.Tensor]:
        """Steps `done` + 1 to `until`; the trained parameters."""
        display = Display(enabled=False)
        trainer = Trainer(
            stage=self.stage,
            model=self.model,
            optimizer=self.prepared,
            scheduler=build_scheduler(self.optimizer, self.config, num_steps=self.steps, done=done),
            accelerator=self.accelerator,
            config=self.config,
            recorder=Recorder(self.folder, display, num_steps=self.steps),
            progress=Progress(step=done),
            stop=StopSignal(),
            seed=3,
            num_steps=until or self.steps,
        )
        train(trainer)
        return {name: p.detach().clone() for name, p in self.policy.named_parameters() if p.requires_grad}


def ready(
    folder: Path,
    *,
    peft: str | Mapping[str, PeftConfig] = "full",
    starts: Mapping[str, Path] | None = None,
    rows: int | None = 8,
    tokens: int | None = None,
    attention: Attention = Attention.auto,
    config: TrainConfig = SGD,
    steps: int = 6,
    reward: Callable[..., list[float]] = vowels,
    prompts: Prompts | None = None,
    global_batch_size: int = 4,
    validation: bool = True,
    mixed_precision: str = "no",
    **changes: Any,
) -> Ready:
    """
    Args:
        peft: entry of `PEFT`, which may say more of the model, or methods.
        changes: of the stage's configuration.
    """
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(cpu=True, mixed_precision=mixed_precision)
    methods = PEFT[peft] if isinstance(peft, str) else peft
    pairs = peft == "t5"
    lm = model_of("t5", "seq2seq") if pairs else causal_lm()
    policy = choose_policy(lm, attention, Task.seq2seq_lm if pairs else Task.causal_lm).policy
    inject(policy.lm, methods, seed=0, starts=starts or {})
    stage = PPOConfig(**(SMALL | changes))
    if pairs:
        stage.language_model = PolicyModel.seq2seq_lm
    if peft == "lora and value model":
        policy.value_model = choose_value_model(scoring_lm(), attention)
    elif stage.advantage is Advantage.gae:
        add_value_head(policy)
    prompts = prompts or Prompts([5, 3, 8, 4, 6, 2, 7, 5, 3, 4, 6])
    held_out = Prompts([4, 6, 3], seed=1) if validation else None
    own = batching(
        rows=rows,
        tokens=tokens,
        packed=policy.packed,
        process=accelerator.process_index,
        of=accelerator.num_processes,
    )
    own = replace(own, read=SourceTarget(shift=partial(shifted, policy.lm)) if pairs else next_tokens)
    evaluator = Evaluator(EvaluationConfig(), byte_tokenizer(), held_out, [], own, accelerator)
    setting = Setting(
        config=stage,
        feed=Shuffled(prompts, seed=3),
        validation=held_out,
        evaluator=evaluator,
        batching=own,
        accelerator=accelerator,
        global_batch_size=global_batch_size,
        reference=reference_of(policy.lm, methods),
        scorer=WeightedSum({"reward": reward}, {"reward": 1.0}),
        seed=3,
    )
    return Ready(policy, ppo(setting), accelerator, config, prompts, folder, steps)


def main(out: Path, case: str) -> None:
    advantage, _, peft = case.partition(":")
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    made = ready(
        out / f"run_{rank}",
        peft=peft,
        rows=2,
        advantage=Advantage(advantage),
        num_samples=1 if advantage == "gae" else 2,
        early_stop_kl=1.0,
    )
    parameters = made.train()
    torch.save(
        {
            "parameters": parameters,
            "num_processes": accelerator.num_processes,
            "answers": made.stage.episodes.answers,
            "eval": made.stage.evaluate(made.model, lambda done: True).metrics,
        },
        out / f"{case}_{rank}.pt",
    )


if __name__ == "__main__":
    for case in sys.argv[2:]:
        main(Path(sys.argv[1]), case)
    os._exit(0)  # gloo's threads would now and then outlive the interpreter, which aborts then
