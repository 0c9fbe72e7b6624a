"""Several adapters' answers to one question."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import RandomExamples

from tunecli.config.evaluation import Combine
from tunecli.evaluation.ensemble import best_choice, most_votes, same_questions


class Examples(RandomExamples):
    def __init__(self, adapters: list[int], rows: list[int]) -> None:
        super().__init__([4] * len(rows))
        self.adapters = adapters
        self.rows = rows

    def origin(self, index: int) -> str:
        return f"a.jsonl row {self.rows[index]}"


@pytest.mark.parametrize(
    ("adapters", "rows", "groups"),
    [
        ([-1, -1, -1], [1, 1, 2], [[0], [1], [2]]),  # no adapters by row: a split row is two questions
        ([0, 1, 0, 1], [1, 1, 2, 2], [[0, 1], [2, 3]]),
        ([0, 0, 1, 1], [1, 1, 1, 1], [[0], [1, 2], [3]]),
        ([0, 1, 0], [1, 2, 3], [[0], [1], [2]]),
    ],
)
def test_examples_of_one_row_with_different_adapters_are_one_question(
    adapters: list[int], rows: list[int], groups: list[list[int]]
) -> None:
    assert same_questions(Examples(adapters, rows)) == groups


def test_votes() -> None:
    assert most_votes(["a", "b", "b"]) == "b"
    assert most_votes(["b", "a"]) == "b"


def test_the_mean_and_the_votes_may_differ() -> None:
    scores = torch.tensor([[0.0, -1.0], [0.0, -1.0], [-9.0, -1.0]])
    assert best_choice(scores, Combine.mean) == 1
    assert best_choice(scores, Combine.vote) == 0


def test_among_tied_votes_the_mean_decides() -> None:
    scores = torch.tensor([[0.0, -1.0], [-9.0, -1.0]])
    assert best_choice(scores, Combine.vote) == 1


def test_one_adapter_alone_is_itself() -> None:
    scores = torch.tensor([[-3.0, -1.0, -2.0]])
    assert best_choice(scores, Combine.mean) == best_choice(scores, Combine.vote) == 1


def test_an_ensemble_of_prompts_is_trained_and_answers_each_question_once(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} is", "completion": ["odd", "even"][i % 2 == 0]} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run_dir = tmp_path / "run"
    words = ["peft=[]", *(f"+peft@peft.{name}=prompt_tuning" for name in "abc"), "data.adapter_column='*'"]
    words += ["data.path=rows.jsonl", "data.format=auto", "data.validation=rows.jsonl", "data.overlap=keep"]
    words += ["evaluation.exact_match=8", "evaluation.choices=[odd,even]", "train.max_steps=2"]
    command = [sys.executable, "-m", "tunecli", "run", "recipe=smoke_sft_lora", *words, f"output_dir={run_dir}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    asked = [sample["prompt"] for sample in samples if sample["step"] == 0]
    assert len(asked) == len(set(asked)) == 5
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["data"]["train"]["examples"] == 24
