"""Last words of the quick start: what the run achieved, where it lies and what to do next."""

from __future__ import annotations

import json
import sys
from pathlib import Path

NEXT = """
Next:
  source .venv/bin/activate
  tune ls                                 all recipes
  tune show recipe=sft_lora_smollm2       every setting of this one
  tune resume {run} train.max_steps=100
                                          go on from the last checkpoint
In Python:
  import tunecli
  model, tokenizer = tunecli.load("{run}")
Your own data: first look, then run
  tune preview my.jsonl
  tune run recipe=sft_lora_smollm2 data=file data.path=my.jsonl
"""


def validation_losses(metrics: Path) -> list[tuple[int, float]]:
    """(step, loss) of each evaluation of a run."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["eval/loss"]) for line in lines if "eval/loss" in line]


def main() -> None:
    run = Path(sys.argv[1])
    losses = validation_losses(run / "metrics.jsonl")
    (first, before), (last, after) = losses[0], losses[-1]
    print(f"\nValidation loss: {before:.3f} at step {first}, {after:.3f} at step {last}")
    print(f"Run directory:   {run.resolve()}")
    print(NEXT.format(run=run))


if __name__ == "__main__":
    main()
