"""Ends before the last step: no better evaluation, time over; and which model is the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine.sgd_steps import run_steps
from torch.testing import assert_close

from tunecli.config.errors import UserError
from tunecli.config.train import Optimizer, Scheduler, TrainConfig
from tunecli.engine.checkpoint import forget_worse, restore_best, save_best


def config(**fields) -> TrainConfig:
    fixed = {"optimizer": Optimizer.sgd, "lr_scheduler": Scheduler.constant, "learning_rate": 0.05, "eval_every": 1}
    return TrainConfig(**fixed | fields)


def evaluations(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}


def test_training_ends_after_so_many_evaluations_without_a_better_one(tmp_path: Path) -> None:
    _, trainer = run_steps(tmp_path, config=config(learning_rate=3.0, early_stopping=2))
    losses = evaluations(tmp_path)
    assert trainer.progress.step < trainer.num_steps
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert trainer.progress.best_step == best == trainer.progress.step - 2
    assert (tmp_path / "checkpoints" / f"step_{trainer.progress.step:08d}").is_dir()


def test_with_patience_left_training_goes_on(tmp_path: Path) -> None:
    _, trainer = run_steps(tmp_path, config=config(early_stopping=100))
    losses = evaluations(tmp_path)
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert trainer.progress.step == trainer.num_steps
    assert trainer.progress.without_better == trainer.num_steps - best


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    parameters, trainer = run_steps(tmp_path, config=config(learning_rate=3.0, keep_best=True))
    losses = evaluations(tmp_path)
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert best < trainer.num_steps
    assert trainer.progress.best_value == losses[best]
    assert [folder.name for folder in (tmp_path / "best").iterdir()] == [f"step_{best:08d}"]
    model = trainer.accelerator.unwrap_model(trainer.model)
    restore_best(tmp_path / "best", model, best)
    assert_close(
        trainer.stage.evaluate(model, lambda done: True).metrics["eval/loss"], losses[best], rtol=1e-6, atol=0
    )
    assert any(not torch.equal(p, parameters[name]) for name, p in model.named_parameters() if p.requires_grad)


def test_the_best_that_a_checkpoint_names_outlives_a_better_one(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    for step in (3, 7):
        save_best(tmp_path, model, step)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step_00000003", "step_00000007"]
    forget_worse(tmp_path, 7)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step_00000007"]


def test_time_over_saves_and_ends(tmp_path: Path) -> None:
    _, trainer = run_steps(tmp_path, config=config(max_minutes=1e-9))
    assert trainer.progress.step == 2  # the first step that begins when time is over is the last
    assert (tmp_path / "checkpoints" / "step_00000002").is_dir()
    assert list(evaluations(tmp_path)) == [0, 1, 2]


def test_a_metric_that_no_evaluation_gives_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'eval/f1'(.|\n)*eval/loss, eval/perplexity"):
        run_steps(tmp_path, config=config(keep_best=True, best_metric="eval/f1"))
