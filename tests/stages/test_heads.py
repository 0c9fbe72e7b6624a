"""Classifiers and taggers: their losses are transformers' own, and neither batching nor company changes anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import model_of
from tiny import VOCABULARY, batching
from torch.testing import assert_close

from tunecli.config.model import Attention
from tunecli.config.stage import ClassifyConfig, ProblemType, StageConfig, TagConfig
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Window
from tunecli.data.labels import NUMBER, Labels
from tunecli.data.reading import EachWord, Place, WholeText
from tunecli.engine.distributed import make_accelerator
from tunecli.models.self_test import choose_policy
from tunecli.ops import label_losses
from tunecli.stages import STAGES
from tunecli.stages.setting import Setting
from tunecli.stages.supervised import Supervised

LABELS = ["a", "b", "c"]
ORDINARY = {"single_label": ("a",), "multi_label": ("a", "c"), "regression": ("1.5",)}


class Texts(Window):
    """Random texts with random labels; of two sources in turn, if there are two."""

    def __init__(self, problem: str, names: list[str], number: int = 12) -> None:
        super().__init__(names)
        generator = np.random.default_rng(1)
        for i in range(number):
            ids = generator.integers(4, VOCABULARY, size=int(generator.integers(3, 14)))
            label = LABELS[int(generator.integers(3))]
            labels = {"multi_label": tuple(LABELS[: i % 4]), "regression": (str(generator.normal()),)}
            spans = np.array([], np.int64)
            if problem == "tags":
                spans = np.array([border for at in range(1, len(ids) - 1) for border in (at, at + 1)])
                labels["tags"] = tuple(LABELS[int(generator.integers(3))] for _ in range(len(spans) // 2))
            self.examples.append(Encoded.of(ids, spans, labels.get(problem, (label,))))
            self.sources.append(i % len(names))
            self.origins.append(f"row {i}")
            self.adapters.append(-1)


def setting(
    config: StageConfig, examples: Texts, labels: Labels, *, rows: int = 5, packed: bool = True, **weights: object
) -> Setting:
    problem = getattr(config, "problem_type", ProblemType.single_label)
    whole = WholeText(labels=labels, problem=problem, place=Place.first, **weights)
    read = whole if isinstance(config, ClassifyConfig) else EachWord(labels=labels)
    return Setting(
        config=config,
        feed=None,
        validation=examples,
        evaluator=None,
        batching=replace(batching(rows=rows, packed=packed), read=read),
        accelerator=make_accelerator(cpu=True, mixed_precision="no"),
        global_batch_size=4,
        num_examples=4,
        labels=labels,
    )


def build(given: Setting) -> Supervised:
    return STAGES[given.config.name](given)


def model(task: str, number: int = 3, *, packed: bool = True):
    lm = model_of("bert", task)
    if number != 3:
        lm.classifier = torch.nn.Linear(lm.config.hidden_size, number)
        lm.config.num_labels = lm.num_labels = number
    kind = {"classification": ClassifyConfig().task, "tagging": TagConfig().task}[task]
    return choose_policy(lm, Attention.packed if packed else Attention.padded, kind).policy.eval()


@pytest.mark.parametrize("problem", list(ORDINARY))
def test_the_loss_is_transformers_own(problem: str) -> None:
    config = ClassifyConfig(problem_type=ProblemType(problem))
    labels = Labels({"x": [NUMBER] if problem == "regression" else LABELS})
    examples = Texts(problem, ["x"])
    policy = model("classification", len(labels.names))
    found = build(setting(config, examples, labels)).evaluate(policy, lambda done: True).metrics
    policy.lm.config.problem_type = problem if problem == "regression" else f"{problem}_classification"
    losses = []
    for example in examples.examples:
        if problem == "regression":
            target = torch.tensor([float(example.labels[0])])
        elif problem == "multi_label":
            target = torch.tensor([[float(label in example.labels) for label in LABELS]])
        else:
            target = torch.tensor([LABELS.index(example.labels[0])])
        losses.append(policy.lm(input_ids=example.input_ids[None], labels=target).loss.item())
    assert found["eval/loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_the_loss_of_tags_is_transformers_own() -> None:
    examples, labels = Texts("tags", ["x"]), Labels({"x": LABELS})
    policy = model("tagging")
    found = build(setting(TagConfig(), examples, labels)).evaluate(policy, lambda done: True).metrics
    total = words = 0.0
    for example in examples.examples:
        target = torch.full_like(example.input_ids, -100)
        target[example.trained] = torch.tensor([LABELS.index(label) for label in example.labels], dtype=torch.int64)
        if example.labels:
            loss = policy.lm(input_ids=example.input_ids[None], labels=target[None]).loss.item()
            total, words = total + loss * len(example.labels), words + len(example.labels)
    assert found["eval/loss"] == pytest.approx(total / words, abs=1e-5)


@pytest.mark.parametrize("problem", [*ORDINARY, "tags"])
def test_batches_change_nothing(problem: str) -> None:
    config = TagConfig() if problem == "tags" else ClassifyConfig(problem_type=ProblemType(problem))
    task = "tagging" if problem == "tags" else "classification"
    labels = Labels({"x": [NUMBER] if problem == "regression" else LABELS})
    examples = Texts(problem, ["x"])
    results = []
    for packed in (True, False):
        policy = model(task, len(labels.names), packed=packed)
        for rows in (1, 5, 12):
            stage = build(setting(config, examples, labels, rows=rows, packed=packed))
            results.append(stage.evaluate(policy, lambda done: True).metrics)
            gradients = _gradients(stage, policy, examples, rows)
            if len(results) == 1:
                expected = gradients
            for name, gradient in gradients.items():
                assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)
    for found in results[1:]:
        assert found == pytest.approx(results[0], abs=1e-5)


def _gradients(stage: Supervised, policy, examples: Texts, rows: int) -> dict[str, torch.Tensor]:
    from tunecli.data.batching import microbatches

    policy.zero_grad()
    for batch in microbatches(examples, range(len(examples)), stage.batching):
        stage.loss_of(policy, batch, examples.names).total.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_class_weights_are_those_of_torch() -> None:
    weights = {"a": 2.0, "c": 0.5}
    examples, labels = Texts("single_label", ["x"]), Labels({"x": LABELS})
    policy = model("classification")
    stage = build(setting(ClassifyConfig(), examples, labels, class_weights=weights))
    found = stage.evaluate(policy, lambda done: True).metrics["eval/loss"]
    with torch.no_grad():
        logits = torch.cat([policy.lm(input_ids=each.input_ids[None]).logits for each in examples.examples])
    targets = torch.tensor([LABELS.index(each.labels[0]) for each in examples.examples])
    expected = torch.nn.functional.cross_entropy(logits, targets, weight=torch.tensor([2.0, 1.0, 0.5]))
    assert found == pytest.approx(expected.item(), abs=1e-5)


def test_several_tasks_are_as_many_heads() -> None:
    """Each on its own columns: what the labels of the other task are predicted with has no part in it."""
    labels = Labels({"x": LABELS, "y": LABELS})
    examples = Texts("single_label", ["x", "y"])
    policy = model("classification", 6)
    stage = build(setting(ClassifyConfig(), examples, labels))
    found = stage.evaluate(policy, lambda done: True).metrics
    with torch.no_grad():
        logits = torch.cat([policy.lm(input_ids=each.input_ids[None]).logits for each in examples.examples])
    targets = np.array([LABELS.index(each.labels[0]) for each in examples.examples])
    right = {name: [] for name in "xy"}
    losses = []
    for i, row in enumerate(logits):
        own = row[:3] if i % 2 == 0 else row[3:]
        right["xy"[i % 2]].append(int(own.argmax()) == targets[i])
        losses.append(-own.log_softmax(0)[targets[i]].item())
    assert found["eval/loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    each = {name: np.mean(values) for name, values in right.items()}
    assert (found["eval/accuracy/x"], found["eval/accuracy/y"]) == (each["x"], each["y"])
    assert found["eval/accuracy"] == pytest.approx(np.mean(list(each.values())))


def test_gradients_stay_in_the_columns_of_the_task() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    own = torch.tensor([[True] * 3 + [False] * 3] * 2 + [[False] * 3 + [True] * 3] * 2)
    label_losses.single_label(logits, torch.tensor([0, 2, 3, 5]), own).sum().backward()
    assert logits.grad[~own].abs().max() == 0 and logits.grad[own].abs().min() > 0


def test_windows_of_a_text_are_scored_together() -> None:
    """A span that the border of two windows cuts is one span."""
    examples, labels = Texts("tags", ["x"], number=2), Labels({"x": ["B-X", "I-X", "O"]})
    ids = np.array([5, 6, 7])
    first = Encoded.of(ids, np.array([1, 2]), ("B-X",))
    second = Encoded.of(ids, np.array([1, 2]), ("I-X",))
    examples.examples[:], examples.origins[:] = [first, second], ["row 1", "row 1"]
    policy = model("tagging")
    with torch.no_grad():
        policy.lm.classifier.weight.zero_()
        policy.lm.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    found = build(setting(TagConfig(), examples, labels)).evaluate(policy, lambda done: True).metrics
    assert found["eval/recall"] == 0.0 and found["eval/accuracy"] == 0.5
    assert found["eval/f1"] == 0.0  # B-X B-X are two spans, and neither is B-X I-X
