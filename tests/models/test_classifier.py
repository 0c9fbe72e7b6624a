"""A classifier behind packed rows or padding gives what transformers' own gives for each text alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import DECODER_CLASSIFIERS, ENCODERS, LABELS, model_of
from tiny import VOCABULARY, batching
from torch.testing import assert_close

from tunecli.config.model import Attention
from tunecli.config.stage import ProblemType, Task
from tunecli.data.batching import collate, microbatches
from tunecli.data.encoded import Encoded
from tunecli.data.feed import Window
from tunecli.data.labels import Labels
from tunecli.data.reading import EachWord, Place, WholeText
from tunecli.models.classifier import Classifier
from tunecli.models.self_test import choose_policy

NAMES = ["a", "b", "c"]
LENGTHS = [9, 5, 12, 3]
PADDED = [("t5", "classification"), ("bart", "classification"), ("t5", "tagging")]
PACKED = [*ENCODERS, *DECODER_CLASSIFIERS, ("gpt2", "classification"), ("qwen3", "classification")]
PACKED += [("llama", "tagging"), ("gpt2", "tagging"), ("qwen3", "tagging")]
TASKS = {"classification": Task.sequence_classification, "tagging": Task.token_classification}


def examples(*, pairs: bool = False) -> Window:
    """Random texts; each word is two tokens, and every second text has no label but the first."""
    generator = torch.Generator().manual_seed(1)
    window = Window(["texts"])
    for length in LENGTHS:
        ids = torch.randint(4, VOCABULARY, (length,), generator=generator)
        ids[-1] = 3  # end of text, which encoder-decoders look for
        words = torch.arange(1, length - 1, 2)
        spans = torch.stack([words, words + 1], dim=1).numpy()
        window.examples.append(Encoded(ids, spans, tuple(NAMES[i % 3] for i in range(len(spans))), (2,) * pairs))
        window.sources.append(0)
        window.origins.append("row")
        window.adapters.append(-1)
    return window


def reader(policy: Classifier, *, token_types: bool = False) -> WholeText | EachWord:
    labels = Labels({"texts": NAMES})
    if not policy.whole:
        return EachWord(labels=labels, token_types=token_types)
    place = Place.last if policy.looks_at_last else Place.first
    return WholeText(labels=labels, problem=ProblemType.multi_label, place=place, token_types=token_types)


def stock(lm, found: Window, task: str, *, token_types: bool = False) -> torch.Tensor:
    """Each text alone through the model as it comes."""
    pieces = []
    for example in found.examples:
        inputs = {"input_ids": example.input_ids[None]}
        if token_types:
            inputs["token_type_ids"] = (torch.arange(len(example.input_ids)) >= example.parts[0]).long()[None]
        logits = lm(**inputs).logits[0]
        pieces.append(logits[None] if task == "classification" else logits[example.trained])
    return torch.cat(pieces)


@pytest.mark.parametrize("attention", [Attention.auto, Attention.padded])
@pytest.mark.parametrize(("architecture", "task"), [*PACKED, *PADDED])
def test_logits_are_those_of_each_text_alone(architecture: str, task: str, attention: Attention) -> None:
    found = examples()
    lm = model_of(architecture, task).eval()
    with torch.no_grad():
        expected = stock(lm, found, task)
        policy = choose_policy(lm, attention, TASKS[task]).policy
        assert isinstance(policy, Classifier)
        assert policy.packed is (attention is Attention.auto and (architecture, task) in PACKED)
        settings = batching(packed=policy.packed)
        batch = collate(found, range(len(LENGTHS)), replace(settings, read=reader(policy)))
        logits = policy(batch)
    assert logits.shape == (len(batch.kept), LABELS) and logits.dtype == torch.float32
    assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", [Attention.packed, Attention.padded])
@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_the_texts_of_a_pair_are_told_apart(task: str, attention: Attention) -> None:
    found = examples(pairs=True)
    lm = model_of("bert", task).eval()
    with torch.no_grad():
        expected = stock(lm, found, task, token_types=True)
        policy = choose_policy(lm, attention, TASKS[task]).policy
        settings = batching(packed=policy.packed)
        read = reader(policy, token_types=True)
        batch = collate(found, range(len(LENGTHS)), replace(settings, read=read))
        assert_close(policy(batch), expected, atol=2e-5, rtol=1e-4)
        assert (expected - stock(lm, found, task)).abs().max() > 1e-3


def test_rows_that_are_filled_up_change_nothing() -> None:
    found = examples()
    policy = choose_policy(model_of("bert", "classification").eval(), Attention.packed, Task.sequence_classification)
    settings = batching(rows=2)
    read = reader(policy.policy)
    batches = microbatches(found, range(4), replace(settings, read=read))
    with torch.no_grad():
        before = [policy.policy(batch) for batch in batches]
        policy.policy.multiple = 32
        for batch, logits in zip(batches, before, strict=True):
            assert_close(policy.policy(batch), logits, atol=1e-5, rtol=1e-4)


def test_targets_of_several_labels_are_zeros_and_ones() -> None:
    labels = Labels({"texts": NAMES})
    read = WholeText(labels=labels, problem=ProblemType.multi_label, place=Place.first)
    example = Encoded(torch.arange(5), torch.zeros(0, 2).numpy(), ("c", "a"))
    assert read(example, "texts").targets.tolist() == [[1, 0, 1]]
