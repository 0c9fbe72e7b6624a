"""Last words of the quick start: what the model says now, where the run lies and what to do next."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tunecli.engine.questions import question_of

SHOWN = 3

NEXT = """
Next:
  source .venv/bin/activate
  tune chat {run}
                                     talk to it; /base and /compare show the difference
  tune merge {run}
                                     plain weights, for any other tool
  tune preview my.jsonl              your own data, as a model sees them
  tune run recipe=sft_lora_smollm2 data=file data.path=my.jsonl
  tune ls                            all recipes
The report with curves and answers: {report}
"""


def answers(run: Path) -> list[tuple[dict[str, str], dict[str, str]]]:
    """The same questions with their answers at the first and at the last evaluation."""
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    last = max(sample["step"] for sample in samples)
    first_answers = [sample for sample in samples if sample["step"] == 0]
    last_answers = [sample for sample in samples if sample["step"] == last]
    return list(zip(first_answers, last_answers, strict=True))


def main() -> None:
    run = Path(sys.argv[1])
    print("\nHeld-out reviews, before and after:")
    for before, after in answers(run)[:SHOWN]:
        review = question_of(before["prompt"]).split("\n\n")[-1]
        print(f"\n  {' '.join(review.split())[:110]}")
        print(f"    before: {' '.join(before['answer'].split())}")
        print(f"    after:  {' '.join(after['answer'].split())}    (people: {after['expected']})")
    print(NEXT.format(run=run, report=(run / "report.html").resolve()))


if __name__ == "__main__":
    main()
