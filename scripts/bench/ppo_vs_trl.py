"""`tune run recipe=ppo_sentiment` against TRL's PPOTrainer: LoRA of SmolLM2-135M-Instruct on a CPU, the same reward
model, prompts, lengths and number of answers.

Episodes per second: answers of a rollout over its wall time, from drawing them to the last optimizer step on them;
the first rollout of each run is not counted. Contestants alternate, so that a machine that drifts slows both. TRL
trains a value model of its own, all of it, as its script has it; ours a head on the policy.

    bash scripts/bench/setup_trl.sh .venv-ppo 1.12.0
    .venv/bin/tune run recipe=reward_sentiment peft=full train.learning_rate=2e-5 output_dir=outputs/bench/reward_full
    .venv/bin/python scripts/bench/ppo_vs_trl.py --reward outputs/bench/reward_full
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from bench_results import ROOT, as_markdown, as_text, say

MODEL = ROOT / "assets" / "models" / "SmolLM2-135M-Instruct"
PROMPTS = ROOT / "assets" / "data" / "movie_prompts" / "train.jsonl"
TRL_PYTHON = ROOT / ".venv-ppo" / "bin" / "python"
EPISODES, NEW_TOKENS, EPOCHS, MINIBATCHES, MICRO_BATCH, RATE = 32, 24, 4, 4, 8, 1e-4


def ours(reward: Path, run_dir: Path, rollouts: int) -> list[float]:
    """Seconds of each rollout."""
    settings = [
        *("recipe=ppo_sentiment", "launch=cpu", f"reward.reward_model.path={reward}", f"output_dir={run_dir}"),
        *(f"stage.rollout_batch_size={EPISODES}", f"stage.max_new_tokens={NEW_TOKENS}"),
        *(f"stage.num_ppo_epochs={EPOCHS}", f"train.global_batch_size={EPISODES // MINIBATCHES}"),
        *(f"train.micro_batch_size={MICRO_BATCH}", f"train.max_steps={rollouts * EPOCHS * MINIBATCHES}"),
        *("train.log_every=1", "train.eval_every=null", "train.save_every=null", f"train.learning_rate={RATE}"),
    ]
    call([sys.executable, "-m", "tunecli", "run", *settings])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["seconds_per_step"] for line in lines if "loss" in line]
    each = EPOCHS * MINIBATCHES
    return [sum(steps[start : start + each]) for start in range(0, len(steps), each)]


def trl(reward: Path, run_dir: Path, rollouts: int) -> list[float]:
    """Seconds of each rollout."""
    run_dir.mkdir()
    prompts = run_dir / "prompts.jsonl"
    write_ids(prompts)
    numbers = {"rollouts": rollouts, "episodes": EPISODES, "new-tokens": NEW_TOKENS, "epochs": EPOCHS}
    numbers |= {"minibatches": MINIBATCHES, "micro-batch": MICRO_BATCH, "seed": 0, "learning-rate": RATE}
    options = [f"--{name}={value}" for name, value in numbers.items()]
    script = str(Path(__file__).with_name("trl_ppo.py"))
    call([str(TRL_PYTHON), script, str(MODEL), str(reward / "model"), str(prompts), str(run_dir), *options])
    return [line["seconds"] for line in map(json.loads, (run_dir / "rollouts.jsonl").read_text().splitlines())]


def write_ids(path: Path) -> None:
    """The prompts as ours are rendered, in tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    ids = [tokenizer.apply_chat_template(row, add_generation_prompt=True, return_dict=False) for row in rows]
    path.write_text("".join(json.dumps({"input_ids": each}) + "\n" for each in ids))


def call(command: list[str]) -> None:
    """Raises SystemExit with the end of its output if it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"status {done.returncode}: {' '.join(command)}\n{done.stdout.decode(errors='replace')[-3000:]}")


def peak(run_dir: Path) -> float:
    """Bytes."""
    file = next(file for name in ("rollouts.jsonl", "metrics.jsonl") if (file := run_dir / name).exists())
    lines = map(json.loads, file.read_text().splitlines())
    return max(line["memory_peak_bytes"] for line in lines if "memory_peak_bytes" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO beside TRL's.")
    parser.add_argument("--reward", type=Path, required=True, help="a run of recipe=reward_sentiment peft=full")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=3, help="of each run")
    given = parser.parse_args()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    contestants = {"tunecli": ours, "trl": trl}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    peaks: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(given.rounds):
        for name, run in contestants.items():
            with TemporaryDirectory() as folder:
                run_dir = Path(folder) / "run"
                seconds = run(given.reward.resolve(), run_dir, given.rollouts)
                speeds[name].append(EPISODES / mean(seconds[1:]))
                peaks[name].append(peak(run_dir))
            say(f"round {number + 1}, {name}: {speeds[name][-1]:.3f} episodes/s, {peaks[name][-1] / 1e9:.2f} GB")
    lines = [["", "episodes/s", "peak GB"]]
    for name in contestants:
        lines.append([name, f"{median(speeds[name]):.3f}", f"{median(peaks[name]) / 1e9:.2f}"])
    print(f"\n{as_text(lines)}\n\n{as_markdown(lines)}")
    print(f"ratio of episodes/s: {median(speeds['tunecli']) / median(speeds['trl']):.2f}")


if __name__ == "__main__":
    main()
