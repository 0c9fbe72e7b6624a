"""One run of TRL's SFTTrainer that writes the figures of each step as `tune run` does. `sft_vs_trl.py` starts it in
.venv-bench. Nothing of TRL or transformers is patched.

    python scripts/bench/trl_sft.py shipped|tuned|... MODEL CHATS.jsonl RUN_DIR --steps N --seed S
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
MAX_LENGTH = 512

TUNED: dict[str, Any] = {
    "model_init_kwargs": {"dtype": "bfloat16"},
    "gradient_checkpointing": False,
    "train_sampling_strategy": "group_by_length",
}


def cut(rows: int) -> dict[str, int]:
    """8 examples a step, so many at a time."""
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows}


SETTINGS: dict[str, dict[str, Any]] = {
    # SFTConfig's defaults: fp32 weights under bf16 autocast, gradient checkpointing, loss on every token.
    "shipped": cut(8),
    # Its head works on [tokens, 32768] tensors, in fp32 and padding included: fewer rows at a time are faster and
    # take a third of the memory. Slower still, or no faster: padding_free=True, and bf16=False (no autocast).
    "tuned": TUNED | cut(2),
    "tuned_8x1": TUNED | cut(8),
    "tuned_1x8": TUNED | cut(1),
}


class CountingTrainer(SFTTrainer):
    """Adds up real tokens and the loss of what is trained on, and changes nothing."""

    tokens = 0
    loss = 0.0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        real = inputs["attention_mask"].sum().item() if "attention_mask" in inputs else inputs["input_ids"].numel()
        self.tokens += real
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.loss += loss.item()  # of one micro-batch; TRL divides by the tokens of the whole step
        return loss


class StepLines(TrainerCallback):
    """A line per optimizer step. Its time is from the end of the step before, so making the batch is included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer: CountingTrainer | None = None
        self.since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        line = {
            "step": state.global_step,
            "loss": self.trainer.loss,
            "tokens": self.trainer.tokens,
            "seconds_per_step": time.perf_counter() - self.since,
            "memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.trainer.loss = 0.0
        self.since = time.perf_counter()


def prompt_completion(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's form for loss on the answer alone; SmolLM2's template has no marks for `assistant_only_loss`."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def load_rows(path: str, tuning: str) -> Dataset:
    rows = load_dataset("json", data_files=path, split="train")
    return rows if tuning == "shipped" else rows.map(prompt_completion, remove_columns=["messages"])


def main() -> None:
    parser = argparse.ArgumentParser(description="One run of TRL's SFTTrainer on a CPU.")
    parser.add_argument("tuning", choices=sorted(SETTINGS))
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()

    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    lines = StepLines(arguments.run_dir / "metrics.jsonl")
    config = SFTConfig(
        output_dir=str(arguments.run_dir),
        max_steps=arguments.steps,
        max_length=MAX_LENGTH,
        learning_rate=3e-4,
        seed=arguments.seed,
        use_cpu=True,  # without it: "Your setup doesn't support bf16/gpu"
        **SETTINGS[arguments.tuning],
    )
    lines.trainer = CountingTrainer(
        model=arguments.model,
        args=config,
        train_dataset=load_rows(arguments.data, arguments.tuning),
        peft_config=LoraConfig(**LORA),
        callbacks=[lines],
    )
    lines.trainer.train()
    lines.trainer.save_model()


if __name__ == "__main__":
    main()
