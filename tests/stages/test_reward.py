"""Reward models: a text scores what it scores alone, neither batches nor company change that, and the loss falls."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import model_of
from tiny import VOCABULARY, batching
from torch.testing import assert_close

from tunecli.config.model import Attention
from tunecli.config.stage import RewardConfig, Task
from tunecli.data.batching import collate, microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Window
from tunecli.data.reading import Place, WholeAnswers, sides_of
from tunecli.engine.distributed import make_accelerator
from tunecli.models.classifier import Classifier
from tunecli.models.self_test import choose_policy
from tunecli.stages import STAGES
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised

END = 3
CONFIG = RewardConfig(center_rewards_coefficient=0.1)


class Answers(Window):
    """Pairs and scored texts in turn, of random tokens, from the given sources in turn."""

    def __init__(self, names: list[str], number: int = 12, *, pairs_only: bool = False) -> None:
        super().__init__(names)
        random = np.random.default_rng(2)
        for i in range(number):
            texts = [np.append(random.integers(4, VOCABULARY, int(random.integers(3, 12))), END) for _ in range(2)]
            is_pair = pairs_only or i % 3 < 2
            texts = texts[: 1 + is_pair]
            numbers = (float(random.random()), [1.0, 0.3, 0.5][i % 3]) if is_pair else (float(random.normal()),)
            starts = np.cumsum([0, *map(len, texts)])
            spans = [border for at, end in zip(starts, starts[1:], strict=False) for border in (at + 1, end)]
            parts = (len(texts[0]),) if is_pair else ()
            self.examples.append(Encoded.of(np.concatenate(texts), np.array(spans), (), parts, numbers))
            self.sources.append(i % len(names))
            self.origins.append(f"row {i}")
            self.adapters.append(-1)


def policy_of(architecture: str, attention: Attention = Attention.auto) -> Classifier:
    lm = model_of(architecture, "classification")
    head = lm.score if hasattr(lm, "score") else None
    torch.manual_seed(0)
    if head is not None:
        lm.score = torch.nn.Linear(head.in_features, 1, bias=False)
    elif hasattr(lm, "classifier"):
        lm.classifier = torch.nn.Linear(lm.classifier.in_features, 1)
    else:
        last = lm.classification_head.out_proj
        lm.classification_head.out_proj = torch.nn.Linear(last.in_features, 1)
    lm.config.num_labels = lm.num_labels = 1
    found = choose_policy(lm, attention, Task.sequence_classification).policy
    assert isinstance(found, Classifier)
    return found.eval()


def reader(policy: Classifier) -> WholeAnswers:
    return WholeAnswers(place=Place.last if policy.looks_at_last else Place.first)


def stage_of(policy: Classifier, examples: Answers, *, rows: int = 5, config: RewardConfig = CONFIG) -> Supervised:
    setting = Setting(
        config=config,
        validation=examples,
        evaluator=None,
        batching=replace(batching(rows=rows, packed=policy.packed), read=reader(policy)),
        accelerator=make_accelerator(cpu=True, mixed_precision="no"),
        global_batch_size=4,
    )
    return STAGES["reward"](setting)


def alone(policy: Classifier, examples: Answers) -> list[list[float]]:
    """The scores of each row's texts, each alone through the model as it comes."""
    with torch.no_grad():
        return [
            [policy.lm(input_ids=each.input_ids[None, side]).logits.item() for side in sides_of(each)]
            for each in examples.examples
        ]


def slow_loss(config: RewardConfig, numbers: tuple[float, ...], scores: list[float]) -> float:
    if len(scores) == 1:
        return (scores[0] - numbers[0]) ** 2
    margin, probability = numbers
    won = 1 / (1 + math.exp(-(scores[0] - scores[1] - margin * config.margin)))
    entropy = -probability * math.log(won) - (1 - probability) * math.log(1 - won)
    return entropy + config.center_rewards_coefficient * (scores[0] + scores[1]) ** 2


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5", "bart"])
def test_each_text_scores_what_it_scores_alone(architecture: str) -> None:
    policy, examples = policy_of(architecture), Answers(["x"])
    expected = [score for scores in alone(policy, examples) for score in scores]
    how = replace(batching(packed=policy.packed), read=reader(policy))
    with torch.no_grad():
        found = policy(collate(examples, range(len(examples)), how))
    assert_close(found[:, 0], torch.tensor(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, RewardConfig(margin=False)])
def test_the_loss_and_the_metrics_are_those_of_the_texts_alone(config: RewardConfig) -> None:
    policy, examples = policy_of("llama"), Answers(["x"])
    scores = alone(policy, examples)
    found = stage_of(policy, examples, config=config).evaluate(policy, lambda done: True)
    losses = [slow_loss(config, each.numbers, own) for each, own in zip(examples.examples, scores, strict=True)]
    assert found.metrics["eval/loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.losses is not None and found.losses[:, 0] == pytest.approx(losses, abs=1e-5)
    leads = [
        (own[0] - own[1]) * (1 if each.numbers[1] > 0.5 else -1)
        for each, own in zip(examples.examples, scores, strict=True)
        if len(own) == 2 and each.numbers[1] != 0.5
    ]
    assert found.metrics["eval/accuracy"] == pytest.approx(np.mean([lead > 0 for lead in leads]))
    assert found.metrics["eval/margin"] == pytest.approx(np.mean(leads), abs=1e-5)
    wrong = [own[0] - each.numbers[0] for each, own in zip(examples.examples, scores, strict=True) if len(own) == 1]
    assert found.metrics["eval/mse"] == pytest.approx(np.mean(np.square(wrong)), abs=1e-5)
    assert found.right == {}  # rows that are no comparison are neither right nor wrong


def gradients(policy: Classifier, examples: Answers, rows: int) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    stage = stage_of(policy, examples, rows=rows)
    parts: dict[str, float] = {}
    for batch in microbatches(examples, range(len(examples)), stage.batching):
        output = stage.loss_of(policy, batch, examples.names)
        output.total.backward()
        for name, (total, units) in output.parts.items():
            parts[name] = parts.get(name, 0.0) + total.item()
            parts[f"units {name}"] = parts.get(f"units {name}", 0.0) + units.item()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return found | {name: torch.tensor(value) for name, value in parts.items()}


def test_batches_change_nothing() -> None:
    examples = Answers(["x", "y"])
    expected = gradients(policy_of("llama"), examples, 12)
    assert expected["units accuracy"] == sum(
        len(each.numbers) == 2 and each.numbers[1] != 0.5 for each in examples.examples
    )
    for attention in (Attention.packed, Attention.padded):
        policy = policy_of("llama", attention)
        for rows in (1, 5):
            for name, value in gradients(policy, examples, rows).items():
                assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


def test_each_source_has_its_own_metrics() -> None:
    policy, examples = policy_of("llama"), Answers(["x", "y"], pairs_only=True)
    found = stage_of(policy, examples).evaluate(policy, lambda done: True).metrics
    for name in ("accuracy", "margin", "ece"):
        assert found[f"eval/{name}"] == pytest.approx((found[f"eval/{name}/x"] + found[f"eval/{name}/y"]) / 2)
    assert found["eval/loss"] == pytest.approx((found["eval/loss/x"] + found["eval/loss/y"]) / 2)


def test_the_loss_falls() -> None:
    policy, examples = policy_of("llama").train(), Answers(["x"], pairs_only=True)
    stage = stage_of(policy, examples, rows=12, config=RewardConfig())
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    (batch,) = microbatches(examples, range(len(examples)), stage.batching)
    losses = []
    for _ in range(15):
        loss = stage.loss_of(policy, batch, examples.names).total / len(examples)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_calibrated_differences_have_no_calibration_error() -> None:
    from tunecli.evaluation.metrics import comparison

    lead = math.log(3)  # which is preferred three times out of four
    found = comparison(np.array([lead, lead, lead, -lead]))
    assert found["accuracy"] == 0.75 and found["ece"] == pytest.approx(0.0, abs=1e-9)
    assert comparison(np.array([lead] * 4))["ece"] == pytest.approx(0.25)
    assert F.sigmoid(torch.tensor(lead)).item() == pytest.approx(0.75)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path) -> None:
    words = [
        "recipe=smoke_reward",
        "train.max_steps=3",
        "train.optimizer=sgd",
        "train.learning_rate=0.1",
        "launch=cpu",
    ]
    words += [
        "train.eval_every=3",
        "train.save_every=null",
        "train.lr_scheduler=constant",
        "train.micro_batch_size=3",
    ]
    lines = {}
    for number in (1, 2):
        run = tmp_path / str(number)
        command = [
            sys.executable,
            "-m",
            "tunecli",
            "run",
            *words,
            f"launch.num_processes={number}",
            f"output_dir={run}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        lines[number] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines[1]) == len(lines[2])
    for one, two in zip(lines[1], lines[2], strict=True):
        for name in ("loss", "accuracy", "margin", "grad_norm", "eval/loss", "eval/accuracy", "eval/margin"):
            assert (name in one) == (name in two)
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
