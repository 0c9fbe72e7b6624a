"""Run directories as training leaves them behind: 200 steps, three sources, evaluations, samples."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

STEPS, EVERY = 200, 25
SOURCES = ("reviews", "对话", "</script><b>forum</b>")
HOSTILE = '</script><script>alert("x")</script>\x1b[31mred\x1b[0m\u202egnp'
PROMPTS = {
    "Is this review positive or negative?\nA film that never wakes up.": "negative",
    "用一句话介绍北京。": None,
    f"Summarize: {HOSTILE}": None,
}

CONFIG = """\
recipe: sft_lora_smollm2
model:
  path: HuggingFaceTB/SmolLM2-135M-Instruct
  quantization: none
data:
  path: null
  mix:
  - path: data/reviews.jsonl
  - path: data/对话.jsonl
  - path: data/<b>forum</b>.jsonl
  validation: '0.05'
  max_length: 512
peft:
  lora:
    method: lora
    r: {r}
    lora_alpha: 32.0
    target_modules:
    - all-linear
stage:
  name: sft
  train_on_prompt: false
train:
  max_steps: 200
  global_batch_size: 16
  learning_rate: 0.0003
  lr_scheduler: cosine
  eval_every: 25
  best_metric: eval/loss
  keep_best: true
seed: {seed}
output_dir: {output_dir}
"""


def write_run(run_dir: Path, *, seed: int = 1, r: int = 16, floor: float = 1.1) -> Path:
    """A finished run whose loss falls towards `floor`."""
    run_dir.mkdir(parents=True)
    draw = random.Random(seed)
    _write(run_dir / "config.yaml", CONFIG.format(seed=seed, r=r, output_dir=json.dumps(str(run_dir))))
    _write(run_dir / "overrides.txt", f"peft.lora.r={r}\n# resumed with:\ntrain.max_steps=200\n")
    origins = {"peft.lora.r": "command line", "train.learning_rate": "recipes/sft_lora_smollm2.yaml:14"}
    _write(run_dir / "origins.json", json.dumps(origins | {"model.quantization": "default of ModelConfig"}))
    _write(run_dir / "environment.json", json.dumps(_environment(seed)))
    _write(run_dir / "status.json", json.dumps({"state": "finished", "step": STEPS, "exit_status": 0}))
    _write(run_dir / ".lock", "12345")
    _write_lines(run_dir / "metrics.jsonl", list(_metrics(draw, floor)))
    _write_lines(run_dir / "samples.jsonl", list(_samples()))
    answers = {0: [0] * 90 + [1] * 10, STEPS: [1] * 85 + [0] * 15}
    _write_lines(run_dir / "answers.jsonl", [{"step": step, "exact_match": each} for step, each in answers.items()])
    bad = {"source": "data/<b>forum</b>.jsonl", "why": "bad", "what": f"not JSON: {HOSTILE}", "fix": "mend the row"}
    _write_lines(run_dir / "left_out.jsonl", [{"row": row, **bad} for row in range(9)])
    log = ["trains 4,884,480 of 139,400,064 parameters (3.50%), bf16", "step 0  eval/loss 3.1000"]
    log += [f"step {step}/{STEPS}  loss 1.0" for step in range(1, 121)]
    log += ["stopped after step 120 of 200, checkpoint saved", "resumes after step 120", f"a note: {HOSTILE}"]
    log += [f"step {step}/{STEPS}  loss 1.0" for step in range(121, 201)] + [f"done: {run_dir}"]
    _write(run_dir / "log.txt", "".join(f"{line}\n" for line in log))
    return run_dir


def metrics_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> step and value of each line of metrics.jsonl that has it."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name, value in record.items():
            found.setdefault(name, []).append((record["step"], value))
    return found


def _metrics(draw: random.Random, floor: float) -> Any:
    yield _evaluation(0, 0.0, floor)
    for step in range(1, STEPS + 1):
        done = step / STEPS
        loss = floor + 2 * math.exp(-5 * done) + draw.gauss(0, 0.09)
        yield {
            "step": step,
            "loss": loss,
            **{f"loss/{name}": loss + 0.25 * (i - 1) + draw.gauss(0, 0.05) for i, name in enumerate(SOURCES)},
            "learning_rate": 3e-4 * min(step / 10, 0.5 + 0.5 * math.cos(math.pi * done)),
            "grad_norm": 0.6 + 1.2 * math.exp(-6 * done) + abs(draw.gauss(0, 0.08)),
            "tokens": 2100 * step,
            "tokens_per_second": 1150 + draw.gauss(0, 60),
            "seconds_per_step": 1.8,
            "seconds": 1.8 * step,
            "memory_peak_bytes": 1_850_000_000 + 400_000 * min(step, 80),
        }
        if step % EVERY == 0:
            yield _evaluation(step, done, floor)


def _evaluation(step: int, done: float, floor: float) -> dict[str, float]:
    loss = floor + 0.05 + 2 * math.exp(-5 * done) + 0.15 * done**4
    by_source = {f"eval/loss/{name}": loss + 0.2 * (i - 1) for i, name in enumerate(SOURCES)}
    right = {"eval/exact_match": 0.9 * (1 - math.exp(-6 * done)), "eval/choice_accuracy": 0.72 + 0.2 * done}
    return {"step": step, "eval/loss": loss, **by_source, "eval/perplexity": math.exp(loss), **right}


def _samples() -> Any:
    for step in range(0, STEPS + 1, EVERY):
        late = step >= 75
        answers = (
            "negative" if late else "I think that the film is…\n\n- slow\n- quiet",
            "北京是中国的首都 🏯🎉。",
            HOSTILE,
        )
        for (prompt, expected), answer in zip(PROMPTS.items(), answers, strict=True):
            sample = {"step": step, "prompt": prompt, "answer": answer}
            yield sample if expected is None else sample | {"expected": expected}


def _environment(seed: int) -> dict[str, Any]:
    # A share is held out for validation, so both sides were read from the same rows.
    read = {"rows": 12_345, "left_out": {"bad": 9}}
    counts = {"examples": 11_700, "tokens": 2_345_678, "trained_tokens": 345_678, "truncated": 12} | read
    kinds = {"formats": ["messages", "alpaca", "messages"], "fingerprints": [f"{seed:x}" * 32] * 3}
    return {
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64-with-glibc2.36",
        "packages": {"tunecli": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 25.3, "gpus": [], "cuda": None},
        "git_commit": "0b2a4e5c7d",
        "data": {
            "train": counts | kinds,
            "validation": counts | {"examples": 617, "tokens": 120_001} | kinds,
        },
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
