"""Instruction data for benchmarks, made from the movie reviews of assets/: real English, lengths as instruction data
has them (log-normal, median about 180 tokens with SmolLM2's template, none beyond 512), the same on every machine.

    python scripts/bench/instruction_data.py chats.jsonl [--rows 400] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

REVIEWS = Path(__file__).resolve().parents[2] / "assets" / "data" / "movie_reviews" / "train.jsonl"
INSTRUCTIONS = (
    "Write a film review that begins like this.",
    "Here is what one critic said. What did the others say?",
    "Continue this review in the same voice.",
    "Collect more opinions like the following one.",
)
MEDIAN_WORDS, SPREAD, MOST_WORDS = 105, 0.65, 330
"""of question and answer together; about 1.4 tokens a word, and 43 more from the template and its system turn"""


def read_snippets(path: Path) -> list[str]:
    """The bare review texts, without the question that stands before them."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["messages"][0]["content"].split("\n\n", 1)[1] for line in file]


def make_rows(snippets: list[str], *, num_rows: int, seed: int) -> Iterator[dict[str, object]]:
    rng = random.Random(seed)
    supply = cycle(rng.sample(snippets, len(snippets)))
    for _ in range(num_rows):
        words = min(rng.lognormvariate(math.log(MEDIAN_WORDS), SPREAD), MOST_WORDS)
        question = "\n\n".join([rng.choice(INSTRUCTIONS), *(next(supply) for _ in range(rng.choice((1, 2))))])
        answer = next(supply)
        while num_words(question) + num_words(answer) < words:
            answer += " " + next(supply)
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def num_words(text: str) -> int:
    return len(text.split())


def write_rows(path: Path, *, num_rows: int, seed: int) -> None:
    rows = make_rows(read_snippets(REVIEWS), num_rows=num_rows, seed=seed)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write chats of instruction-like lengths, made from film reviews.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_rows(arguments.path, num_rows=arguments.rows, seed=arguments.seed)


if __name__ == "__main__":
    main()
