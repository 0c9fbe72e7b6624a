"""Continued pretraining: losses are transformers' own, for next tokens and for masked ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import model_of
from tiny import RandomExamples, batching
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM

from tests.stages.test_heads import setting
from tunecli.config.model import Attention
from tunecli.config.stage import Objective, PretrainConfig, Task
from tunecli.data.batching import microbatches
from tunecli.data.masking import MaskedTokens
from tunecli.engine.stage import Evaluation
from tunecli.models.self_test import choose_policy
from tunecli.stages import STAGES

LENGTHS = [9, 5, 12, 3, 14, 7]
READ = MaskedTokens(seed=1, probability=0.3, mask=95, vocabulary=np.arange(4, 90))


def masked_lm(attention: Attention):
    torch.manual_seed(0)
    config = model_of("bert", "classification").config
    lm = AutoModelForMaskedLM.from_config(config, dtype=torch.float32).eval()
    return choose_policy(lm, attention, Task.masked_lm).policy


def stage(attention: Attention, rows: int, names: list[str] | None = None):
    config = PretrainConfig(objective=Objective.masked_lm)
    examples = RandomExamples(LENGTHS, names=names or ["random"])
    settings = replace(batching(rows=rows, packed=attention is Attention.packed), read=READ)
    given = replace(
        setting(config, examples, None), batching=settings, evaluator=lambda policy, proceed: Evaluation()
    )
    return STAGES["pretrain"](given), examples


def transformers_loss(lm, examples: RandomExamples) -> float:
    total = predicted = 0
    for i, example in enumerate(examples):
        found = READ(example, "random", i)
        labels = torch.full_like(found.input_ids, -100)
        labels[found.kept] = example.input_ids[found.kept]
        total = total + lm(input_ids=found.input_ids[None], labels=labels[None]).loss * len(found.kept)
        predicted += len(found.kept)
    return total / predicted


@pytest.mark.parametrize("attention", [Attention.packed, Attention.padded])
def test_loss_and_gradients_of_masked_tokens_are_transformers_own(attention: Attention) -> None:
    policy = masked_lm(attention)
    for rows in (1, 6):
        built, examples = stage(attention, rows)
        expected = transformers_loss(policy.lm, examples)
        policy.zero_grad()
        expected.backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        found = built.evaluate(policy, lambda done: True).metrics
        assert found["eval/loss"] == pytest.approx(expected.item(), abs=1e-5)
        assert found["eval/perplexity"] == pytest.approx(math.exp(expected.item()), rel=1e-4)
        policy.zero_grad()
        batches = microbatches(examples, range(len(LENGTHS)), built.batching)
        weight = sum(built.weight(batch) for batch in batches)
        for batch in batches:
            (built.loss_of(policy, batch, examples.names).total / weight).backward()
        for name, p in policy.named_parameters():
            if p.grad is not None:
                assert_close(p.grad, gradients[name], atol=1e-5, rtol=1e-3)


def test_validation_masks_are_the_same_every_time() -> None:
    policy = masked_lm(Attention.packed)
    built, _ = stage(Attention.packed, 3)
    first = built.evaluate(policy, lambda done: True).metrics
    assert built.evaluate(policy, lambda done: True).metrics == first


def test_each_source_has_its_own_loss() -> None:
    built, _ = stage(Attention.packed, 3, ["a", "b"])
    assert {"eval/loss/a", "eval/loss/b"} <= set(
        built.evaluate(masked_lm(Attention.packed), lambda done: True).metrics
    )
