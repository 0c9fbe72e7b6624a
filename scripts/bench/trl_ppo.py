"""One run of TRL's PPOTrainer that writes the figures of each rollout. `ppo_vs_trl.py` starts it in .venv-ppo.
Nothing of TRL or transformers is patched.

    python scripts/bench/trl_ppo.py MODEL REWARD_MODEL PROMPTS.jsonl RUN_DIR --rollouts N --episodes N ...
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
PAD = "<|pad|>"
"""TRL finds the end of an answer by its padding, so that this must not be a token that ends one."""


class RolloutLines(TrainerCallback):
    """A line per rollout, with everything that was done about it: answers, scores, all its optimizer steps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        line = {
            "rollout": state.global_step,
            "seconds": time.perf_counter() - self.since,
            "memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.since = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description="One run of TRL's PPOTrainer on a CPU.")
    parser.add_argument("model")
    parser.add_argument("reward_model")
    parser.add_argument("prompts", help="JSON lines with the column input_ids")
    parser.add_argument("run_dir", type=Path)
    for name in ("rollouts", "episodes", "new_tokens", "epochs", "minibatches", "micro_batch", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": PAD})
    as_bf16 = {"dtype": torch.bfloat16}
    policy = AutoModelForCausalLM.from_pretrained(given.model, **as_bf16)
    classifier = AutoModelForSequenceClassification.from_pretrained
    reward, value = (classifier(given.reward_model, num_labels=1, **as_bf16) for _ in range(2))
    for model in (policy, reward, value):
        model.resize_token_embeddings(len(tokenizer))
        model.config.pad_token_id = tokenizer.pad_token_id
    config = PPOConfig(
        output_dir=str(given.run_dir),
        use_cpu=True,
        learning_rate=given.learning_rate,
        total_episodes=given.rollouts * given.episodes,
        per_device_train_batch_size=given.micro_batch,
        gradient_accumulation_steps=given.episodes // given.micro_batch,
        num_mini_batches=given.minibatches,
        num_ppo_epochs=given.epochs,
        local_rollout_forward_batch_size=given.micro_batch,
        response_length=given.new_tokens,
        stop_token="eos",
        missing_eos_penalty=1.0,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        seed=given.seed,
    )
    given.run_dir.mkdir(parents=True, exist_ok=True)
    PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=load_dataset("json", data_files=given.prompts, split="train"),
        eval_dataset=load_dataset("json", data_files=given.prompts, split="train[:1]"),
        peft_config=LoraConfig(**LORA),
        callbacks=[RolloutLines(given.run_dir / "rollouts.jsonl")],
    ).train()


if __name__ == "__main__":
    main()
