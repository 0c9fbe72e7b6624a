"""Preferences on real data: reward models with three seeds, and what PPO, RLOO, GRPO and DPO make of SmolLM2.

The judge is MiniLM trained on the movie reviews, which no policy is trained against. Each run is `tune run`, as a
user would, into a folder under --runs; what is there is not run again, so the script can be stopped at any time.

    python scripts/bench/rlhf_table.py --runs outputs/bench/rlhf [--only ppo] [--show]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from bench_results import ROOT, as_markdown, as_text, call, percent, say

BASE = "assets/models/SmolLM2-135M-Instruct"
PROMPTS = "assets/data/movie_prompts/validation.jsonl"
SEEDS = (0, 1, 2)
JUDGE = (
    *("recipe=classify_minilm", "peft=full", "train.learning_rate=1.5e-4", "stage.head_learning_rate=3e-3"),
    *("train.max_steps=200", "train.eval_every=null", "train.save_every=null"),
)
POLICIES = {
    "ppo": ("recipe=ppo_sentiment",),
    "rloo": ("recipe=rloo_sentiment",),
    "grpo": ("recipe=grpo_sentiment",),
    "dpo": ("recipe=dpo_sentiment",),
}
MEASURES = ("score", "judge", "kl", "perplexity", "ended", "tokens")


def train(words: tuple[str, ...], run_dir: Path) -> Path:
    """A run in `run_dir`, unless a finished one is there; one that was cut off goes on."""
    status = run_dir / "status.json"
    if status.is_file() and json.loads(status.read_text())["state"] == "finished":
        return run_dir
    begun = any((run_dir / "checkpoints").glob("step_*"))
    say(f"{run_dir.name}: {'goes on' if begun else 'begins'}")
    call(["-m", "tunecli", *(["resume", str(run_dir)] if begun else ["run", *words, f"output_dir={run_dir}"])])
    return run_dir


def reward_model(runs: Path, seed: int) -> Path:
    return train(("recipe=reward_sentiment", f"seed={seed}", "launch=cpu"), runs / f"reward_{seed}")


def policy(runs: Path, name: str, reward: Path) -> Path:
    words = POLICIES[name]
    scored = () if name == "dpo" else (f"reward.reward_model.path={reward}",)
    return train((*words, *scored, "launch=cpu"), runs / name)


def measured(runs: Path, name: str, path: str, reward: Path, judge: Path) -> dict[str, float]:
    out = runs / f"measured_{name}.json"
    if not out.is_file():
        script = str(Path(__file__).with_name("rlhf_measure.py"))
        call([script, path, BASE, str(reward), str(judge), PROMPTS, str(out)])
    return json.loads(out.read_text())


def accuracy(run_dir: Path) -> float:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["eval/accuracy"] for line in lines if "eval/accuracy" in line][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Preferences on real data.")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "bench" / "rlhf")
    parser.add_argument("--only", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--show", action="store_true", help="print what is there and run nothing")
    given = parser.parse_args()
    if not (ROOT / PROMPTS).exists():
        sys.exit(f"{PROMPTS} is missing\n  fix: python scripts/fetch_assets.py")
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    runs = given.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    if not given.show:
        run_all(runs, given.only)
    ended = [runs / f"reward_{seed}" for seed in SEEDS if (runs / f"reward_{seed}" / "status.json").is_file()]
    if ended:
        print(f"reward model, held-out pairs in the order of the ratings: {percent(list(map(accuracy, ended)))} %")
    lines = [["", *MEASURES]]
    for name in ("base", *POLICIES):
        if (file := runs / f"measured_{name}.json").is_file():
            values = json.loads(file.read_text())
            lines.append([name, *(f"{values[measure]:.3g}" for measure in MEASURES)])
    print(f"\n{as_text(lines)}\n\n{as_markdown(lines)}")


def run_all(runs: Path, names: list[str]) -> None:
    judge = train((*JUDGE, "launch=cpu"), runs / "judge")
    reward = reward_model(runs, SEEDS[0])
    measured(runs, "base", BASE, reward, judge)
    for name in names:
        result = measured(runs, name, str(policy(runs, name, reward)), reward, judge)
        say(f"{name}: {', '.join(f'{measure} {result[measure]:.3g}' for measure in MEASURES)}")
    for seed in SEEDS[1:]:
        say(f"reward model, seed {seed}: accuracy {accuracy(reward_model(runs, seed)):.3f}")


if __name__ == "__main__":
    main()
