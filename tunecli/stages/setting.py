"""What a run hands to each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from tunecli.config.stage import StageConfig
from tunecli.data.batching import Batching, Examples
from tunecli.data.feed import Feed
from tunecli.data.labels import Labels
from tunecli.evaluation.evaluator import Evaluator
from tunecli.peft_methods.reference import Reference
from tunecli.stages.supervised import Loss, Measure, Supervised


class Scores(Protocol):
    total: list[float]
    """one for each answer"""
    parts: dict[str, list[float]]
    """name of a reward -> what it adds to them, unweighted"""


Scorer = Callable[[list[Any], list[str], list[dict[str, Any]]], Scores]
"""Of prompts (texts or messages), their completions, and the other columns of the prompts' rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    config: StageConfig
    feed: Feed | None = None
    """what training draws its examples from; None: nothing is trained, only measured"""
    validation: Examples | None
    evaluator: Evaluator
    batching: Batching
    accelerator: Accelerator
    global_batch_size: int
    num_examples: int = 0
    """how many examples training sees in all"""
    labels: Labels | None = None
    """of a model with a head for them"""
    reference: Reference | None = None
    """the policy before its first step; None: the stage needs none, or nothing is trained"""
    scorer: Scorer | None = None
    """what answers are worth, of stages that draw them"""
    seed: int = 0
    train: Examples | None = None
    """what `feed` draws from; None: rows of a stream"""
    run_dir: Path | None = None
    """None: nothing is trained"""
    note: Callable[[str], None] = lambda line: None
    """says something to the user"""

    def supervised(self, loss_of: Loss, measure: Measure) -> Supervised:
        return Supervised(
            feed=self.feed,
            batching=self.batching,
            accelerator=self.accelerator,
            global_batch_size=self.global_batch_size,
            num_examples=self.num_examples,
            loss_of=loss_of,
            measure=measure,
        )
