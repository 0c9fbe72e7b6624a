"""Scores of labels are sums of log-probabilities by hand, and neither batching nor evaluation changes anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as T
from architectures import ENCODERS_AND_PAIRS
from tiny import CONFIGS, batching
from torch.testing import assert_close

from tests.stages.test_heads import setting
from tunecli.config.evaluation import Combine, EvaluationConfig
from tunecli.config.model import Attention
from tunecli.config.stage import LanguageModel, Task, VerbalizeConfig
from tunecli.data.batching import collate, microbatches
from tunecli.data.candidates import Candidates
from tunecli.data.encoded import Encoded
from tunecli.data.examples import Labelled
from tunecli.data.feed import Window
from tunecli.data.labels import Labels
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokenize import tokenize
from tunecli.data.tokens import Encoding
from tunecli.data.verbalizing import Verbalizer
from tunecli.models.builtin import byte_encoder_tokenizer, byte_tokenizer
from tunecli.models.self_test import choose_policy
from tunecli.ops.choices import choice_losses
from tunecli.stages import STAGES
from tunecli.stages.verbalize import combined, loss, scores

TEMPLATES = ("{text} It was {mask}.", "{text}评价：{mask}。")
VERBALIZER = {"positive": "good", "negative": "bad", "so-so": "fine", "unsure": "金"}
"""Words of 5, 4, 5 and 4 bytes with the space before them; in the Chinese template of 4, 3, 4 and 3."""
TEXTS = [
    ("a joy", "positive"),
    ("dull and long", "negative"),
    ("很好看", "positive"),
    ("?", "unsure"),
    ("hm hm", "so-so"),
]


@dataclass
class Given:
    policy: torch.nn.Module
    examples: Window
    read: Candidates
    task: Task
    tokenizer: T.PreTrainedTokenizerBase

    @property
    def labels(self) -> list[str]:
        return self.read.labels.names


def given(task: Task, attention: Attention, templates: tuple[str, ...] = TEMPLATES) -> Given:
    masked = task is Task.masked_lm
    tokenizer = byte_encoder_tokenizer() if masked else byte_tokenizer()
    config = ENCODERS_AND_PAIRS["bert"]() if masked else CONFIGS["llama"]()
    config.vocab_size, config.initializer_range = len(tokenizer), 0.1
    torch.manual_seed(0)
    factory = T.AutoModelForMaskedLM if masked else T.AutoModelForCausalLM
    lm = factory.from_config(config, dtype=torch.float32).eval()
    options = Encoding(task=task, templates=templates, verbalizer=VERBALIZER, labels=tuple(VERBALIZER), max_length=64)
    examples = Window(["texts"])
    for text, label in TEXTS:
        (item,) = tokenize(Labelled(text, None, (label,)), tokenizer, options)
        spans = np.array(item.spans).ravel()
        examples.examples.append(Encoded.of(np.array(item.input_ids), spans, item.labels, item.parts))
        examples.sources.append(0)
        examples.origins.append(text)
        examples.adapters.append(-1)
    verbalizer = Verbalizer(TextEncoder(tokenizer), options)
    words = [{label: verbalizer.ids(i, label) for label in VERBALIZER} for i in range(len(templates))]
    mask = tokenizer.mask_token_id if masked else None
    read = Candidates(labels=Labels({"": list(VERBALIZER)}), words=words, mask=mask)
    return Given(choose_policy(lm, attention, task).policy.eval(), examples, read, task, tokenizer)


def stage_of(found: Given, rows: int, combine: Combine = Combine.mean):
    config = VerbalizeConfig(language_model=LanguageModel(found.task.value))
    settings = replace(batching(rows=rows, packed=found.policy.packed), read=found.read)
    evaluator = SimpleNamespace(config=EvaluationConfig(combine=combine))
    made = setting(config, found.examples, found.read.labels)
    return STAGES["verbalize"](replace(made, batching=settings, evaluator=evaluator))


@torch.no_grad()
def by_hand(found: Given) -> torch.Tensor:
    """[texts, templates, labels]: with the stock model, one sentence at a time."""
    lm, tokenizer = found.policy.lm, found.tokenizer
    table = torch.zeros(len(TEXTS), 2, len(VERBALIZER))
    for i, j, k in product(range(len(TEXTS)), range(2), range(len(VERBALIZER))):
        word = (" " if j == 0 else "") + VERBALIZER[found.labels[k]]
        head = TEXTS[i][0] + (" It was", "评价：")[j]
        target = torch.tensor(tokenizer(word, add_special_tokens=False)["input_ids"])
        if found.task is Task.masked_lm:
            sentence = f"{head}{'[MASK]' * len(target)}{'.。'[j]}"
            ids = torch.tensor(tokenizer(sentence)["input_ids"])
            places = (ids == tokenizer.mask_token_id).nonzero()[:, 0]
        else:
            ids = torch.tensor(tokenizer(head + word, add_special_tokens=False)["input_ids"])
            places = torch.arange(len(ids) - len(target), len(ids)) - 1
        logprobs = lm(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        table[i, j, k] = logprobs[places, target].sum()
    return table


BOTH = [Task.causal_lm, Task.masked_lm]
WAYS = list(product(BOTH, [Attention.packed, Attention.padded]))


@pytest.mark.parametrize(("task", "attention"), WAYS)
def test_scores_are_sums_of_log_probabilities_by_hand(task: Task, attention: Attention) -> None:
    found = given(task, attention)
    batch = collate(found.examples, range(len(TEXTS)), replace(batching(packed=found.policy.packed), read=found.read))
    with torch.no_grad():
        table = scores(found.policy, batch).view(len(TEXTS), 2, len(VERBALIZER))
        total = loss(found.policy, batch, ["texts"]).total.item()
    found.policy.lm.set_attn_implementation("eager")
    expected = by_hand(found)
    assert_close(table, expected, atol=1e-4, rtol=1e-4)
    right = torch.tensor([found.labels.index(label) for _, label in TEXTS])[:, None].expand(-1, 2)
    cross_entropy = torch.nn.functional.cross_entropy(expected.flatten(0, 1), right.flatten(), reduction="sum")
    assert total == pytest.approx(cross_entropy.item(), abs=1e-3)
    assert batch.weights.sum() == 2 * len(TEXTS)


@pytest.mark.parametrize("task", BOTH)
def test_batches_change_nothing(task: Task) -> None:
    results, gradients = [], []
    for attention, rows in product([Attention.packed, Attention.padded], [1, 5]):
        found = given(task, attention)
        stage = stage_of(found, rows)
        results.append(stage.evaluate(found.policy, lambda done: True).metrics)
        for batch in microbatches(found.examples, range(len(TEXTS)), stage.batching):
            stage.loss_of(found.policy, batch, ["texts"]).total.backward()
        gradients.append({name: p.grad for name, p in found.policy.named_parameters() if p.grad is not None})
    for each, gradient in zip(results[1:], gradients[1:], strict=True):
        assert each == pytest.approx(results[0], abs=1e-5)
        for name, value in gradient.items():
            assert_close(value, gradients[0][name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("task", BOTH)
def test_what_is_measured_is_what_the_scores_say(task: Task) -> None:
    found = given(task, Attention.packed)
    evaluation = stage_of(found, 2).evaluate(found.policy, lambda done: True)
    found.policy.lm.set_attn_implementation("eager")
    table = by_hand(found)
    targets = torch.tensor([found.labels.index(label) for _, label in TEXTS])
    right = (table.mean(1).argmax(1) == targets).tolist()
    assert evaluation.right == {"accuracy": right}
    assert evaluation.metrics["eval/accuracy"] == np.mean(right)
    assert_close(torch.from_numpy(np.concatenate(evaluation.predictions)), table.mean(1), atol=1e-4, rtol=1e-4)
    losses = -table.log_softmax(-1)[torch.arange(len(TEXTS)), :, targets]
    assert evaluation.metrics["eval/loss"] == pytest.approx(losses.mean().item(), abs=1e-4)
    assert_close(torch.from_numpy(evaluation.losses[:, 0]).float(), losses.sum(1), atol=1e-3, rtol=1e-4)
    assert {"eval/f1_macro", "eval/mcc", "eval/ece"} <= set(evaluation.metrics)


def test_templates_vote_and_the_mean_breaks_ties() -> None:
    table = torch.tensor([[0.0, -1.0, -9.0], [0.0, -1.0, -9.0], [-9.0, -1.0, 0.0]])
    assert combined(table, Combine.vote).argmax() == 0 and combined(table, Combine.mean).argmax() == 1
    assert np.exp(combined(table, Combine.vote)) == pytest.approx([2, 0, 1], abs=1e-6)
    tied = torch.tensor([[0.0, -1.0, -9.0], [-3.0, 0.0, -9.0]])
    assert combined(tied, Combine.vote).argmax() == 1


def test_evaluation_leaves_the_weights_untouched() -> None:
    found = given(Task.masked_lm, Attention.packed)
    before = {name: value.clone() for name, value in found.policy.state_dict().items()}
    stage_of(found, 2).evaluate(found.policy, lambda done: True)
    for name, value in found.policy.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in found.policy.parameters())


@pytest.mark.parametrize("task", BOTH)
def test_the_order_of_rows_changes_no_answer(task: Task) -> None:
    found = given(task, Attention.packed)
    first = stage_of(found, 2).evaluate(found.policy, lambda done: True)
    for values in (found.examples.examples, found.examples.origins):
        values.reverse()
    second = stage_of(found, 2).evaluate(found.policy, lambda done: True)
    assert first.right["accuracy"] == second.right["accuracy"][::-1]
    assert second.metrics == pytest.approx(first.metrics, abs=1e-5)


def test_labels_share_a_sequence_where_the_model_reads_the_same() -> None:
    masked = given(Task.masked_lm, Attention.packed)
    assert masked.read.copies == 2  # masks for words of two lengths
    reading = masked.read(masked.examples[0], "texts")
    assert len(reading.lengths) == 4 and sum(reading.lengths) == len(reading.input_ids)
    words = [{"a": (1,), "b": (2,), "c": (1, 3)}]
    assert Candidates(labels=Labels({"": ["a", "b", "c"]}), words=words, mask=None).copies == 2
    assert Candidates(labels=Labels({"": ["a", "b", "c"]}), words=words, mask=0).copies == 2


def test_losses_of_questions_with_different_numbers_of_candidates() -> None:
    values = torch.randn(5, requires_grad=True)
    losses = choice_losses(values, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 2]))
    expected = [-values[:2].log_softmax(0)[1], -values[2:].log_softmax(0)[0]]
    assert_close(losses, torch.stack(expected))
    losses.sum().backward()
    assert torch.isfinite(values.grad).all()


def test_every_sequence_of_a_row_goes_to_its_adapter() -> None:
    found = given(Task.causal_lm, Attention.packed)
    examples = found.examples
    for values in (examples.examples, examples.sources, examples.origins):
        values[:] = [each for each in values for _ in range(2)]
    examples.adapters[:] = [0, 1] * len(TEXTS)
    settings = replace(batching(rows=3), read=found.read)
    batch = collate(examples, range(4), settings)
    assert batch.adapters.tolist() == [number for number in (0, 1, 0, 1) for _ in range(len(batch.cu_seq_lens) // 4)]
