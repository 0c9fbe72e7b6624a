"""The beginning that two sequences share, computed once, gives what two whole sequences give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as T
from tiny import SHAPE, batching, causal_lm
from torch.testing import assert_close
from tuners import disturbed

from tests.peft_methods.test_grid import SMALL
from tunecli.config.model import Attention
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.stage import Task
from tunecli.data.batching import collate
from tunecli.data.encoded import Encoded
from tunecli.data.reading import Answers, Reading
from tunecli.data.tree import with_shared_beginning
from tunecli.engine.batch import Batch
from tunecli.models import attention
from tunecli.models.policy import filled_up
from tunecli.models.self_test import choose_policy
from tunecli.models.shared_beginning import shares_beginnings
from tunecli.peft_methods.by_row import route_rows
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.token_ids import token_ids

TREES = ("llama", "qwen3", "gpt2", "mistral", "gemma3", "gpt_neox")
PAIRS = ((9, 4, 6), (1, 3, 1), (12, 1, 7), (0, 3, 5))
"""Tokens that the two share, then those of each alone."""


class Pairs:
    """Two sequences each that begin alike. All tokens of the endings are trained; the first is told by the shared."""

    names = ("pairs",)

    def __init__(self, virtual: list[int] | None = None, adapters: list[int] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.adapters = adapters or [-1] * len(PAIRS)
        self.sources = [0] * len(PAIRS)
        self._pairs = []
        for lengths in PAIRS:
            shared, *endings = [torch.randint(4, 50, (length,), generator=generator) for length in lengths]
            endings = [ending + 40 * number for number, ending in enumerate(endings)]  # they differ from the first on
            beginning = torch.cat([torch.tensor(virtual or [], dtype=torch.int64), shared])
            self._pairs.append((len(beginning), [torch.cat([beginning, ending]) for ending in endings]))
        self.lengths = [sum(map(len, sequences)) for _, sequences in self._pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Encoded:
        start, (chosen, rejected) = self._pairs[index]
        second = len(chosen)
        spans = torch.tensor([[start, second], [second + start, second + len(rejected)]]).numpy()
        return Encoded(torch.cat([chosen, rejected]), spans, parts=(second,))

    def origin(self, index: int) -> str:
        return str(index)


def read_pair(example: Encoded, source: str, number: int = 0) -> Reading:
    kept, targets, candidates = [], [], []
    second = example.parts[0]
    for answer, (start, end) in enumerate(example.spans.tolist()):
        first = max(start - 1, 0 if answer == 0 else second)
        kept.append(torch.arange(first, end - 1))
        targets.append(example.input_ids[first + 1 : end])
        candidates.append(torch.full((end - 1 - first,), answer))
    answers = Answers(torch.cat(candidates), torch.tensor([0, 0]), torch.tensor([0]))
    ones = torch.ones(1)
    return Reading(example.input_ids, torch.cat(kept), torch.cat(targets), ones, starts=(second,), answers=answers)


def batches(**kwargs: object) -> tuple[Batch, Batch]:
    """The same pairs whole and as trees, packed."""
    pairs, found = Pairs(**kwargs), []
    for trees in (False, True):
        found.append(collate(pairs, range(len(pairs)), replace(batching(), read=read_pair, trees=trees)))
    return found[0], found[1]


def gradients(policy: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    outputs = policy(batch)
    (outputs * (1 + torch.arange(outputs.numel()).view_as(outputs) % 5)).sum().backward()  # each counts differently
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def check_same(policy: torch.nn.Module, whole: Batch, tree: Batch) -> None:
    assert tree.input_ids.numel() < whole.input_ids.numel()
    assert_close(policy(tree), policy(whole), atol=1e-5, rtol=0)
    expected = gradients(policy, whole)
    found = gradients(policy, tree)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name} {text}")


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_two_sequences(name: str) -> None:
    policy = choose_policy(causal_lm(name), Attention.packed).policy
    assert not shares_beginnings(policy)
    inject(policy.lm, {}, seed=0)
    check_same(policy, *batches())


@pytest.mark.parametrize("method", PEFT_SCHEMAS)
def test_under_every_method(method: str) -> None:
    methods = {method: PEFT_SCHEMAS[method](**SMALL.get(method, {}))}
    policy = choose_policy(causal_lm(), Attention.packed).policy
    inject(policy.lm, methods, seed=0)
    disturbed(policy.lm)
    check_same(policy, *batches(virtual=token_ids(methods, None).get(method)))


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_prefixes_windows_and_checkpointing_together(name: str) -> None:
    policy = choose_policy(causal_lm(name), Attention.packed).policy
    inject(policy.lm, {"p_tuning_v2": PEFT_SCHEMAS["p_tuning_v2"](num_virtual_tokens=4)}, seed=0)
    whole, tree = batches()
    expected = gradients(policy, whole)
    policy.lm.gradient_checkpointing_enable({"use_reentrant": False})
    policy.lm.train()
    found = gradients(policy, tree)
    for key, gradient in expected.items():
        assert_close(found[key], gradient, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["lora", "prefix_tuning"])
def test_each_row_has_its_own_adapter(method: str) -> None:
    policy = choose_policy(causal_lm(), Attention.packed).policy
    values = SMALL[method]
    inject(policy.lm, {name: PEFT_SCHEMAS[method](**values) for name in ("a", "b")}, seed=0)
    disturbed(policy.lm)
    route_rows(policy.lm, ["tune_a", "tune_b"])
    check_same(policy, *batches(adapters=[0, 1, 1, 0]))


def test_a_reward_model_pools_the_last_token_of_each_branch() -> None:
    torch.manual_seed(0)
    config = T.LlamaConfig(num_key_value_heads=2, **SHAPE)
    config.num_labels = 1
    lm = T.AutoModelForSequenceClassification.from_config(config)
    policy = choose_policy(lm, Attention.packed, Task.sequence_classification).policy
    assert not shares_beginnings(policy)

    def last_tokens(example: Encoded, source: str, number: int = 0) -> Reading:
        second, end = example.parts[0], len(example.input_ids)
        kept = torch.tensor([second - 1, end - 1])
        return Reading(example.input_ids, kept, torch.zeros(2), torch.ones(2), starts=(second,))

    pairs = Pairs()
    whole, tree = (
        collate(pairs, range(len(pairs)), replace(batching(), read=last_tokens, trees=trees))
        for trees in (False, True)
    )
    inject(lm, {}, seed=0)
    check_same(policy, whole, tree)


def test_rows_that_are_filled_up_keep_their_trees() -> None:
    policy = choose_policy(causal_lm(), Attention.packed).policy
    whole, tree = batches()
    more = filled_up(tree, 32)
    assert more.parents is not None and len(more.parents) == len(more.cu_seq_lens) - 1
    policy.multiple = 32
    assert_close(policy(tree), policy(whole), atol=1e-5, rtol=0)


def test_a_branch_that_does_not_see_the_beginning_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*args: object, parents: object = None, **kwargs: object) -> object:
        return attention.packed_attention(*args, **kwargs)

    policy = choose_policy(causal_lm(), Attention.packed).policy
    T.AttentionInterface.register(attention.NAME, forgetful)
    try:
        assert "differ" in shares_beginnings(policy)
    finally:
        T.AttentionInterface.register(attention.NAME, attention.packed_attention)


def test_an_encoder_has_no_trees() -> None:
    config = T.BertConfig(**SHAPE)
    torch.manual_seed(0)
    lm = T.AutoModelForSequenceClassification.from_config(config)
    policy = choose_policy(lm, Attention.packed, Task.sequence_classification).policy
    assert "sees those before it" in shares_beginnings(policy)


def test_what_is_shared_is_read_once_and_each_keeps_a_token() -> None:
    def pair(*sequences: list[int]) -> Reading:
        ids = torch.tensor(sum(sequences, []))
        ends = torch.tensor([len(sequences[0]) - 1, len(ids) - 1])
        return Reading(ids, ends, ends, torch.ones(1), starts=(len(sequences[0]),))

    found = with_shared_beginning(pair([1, 2, 3, 4], [1, 2, 5]))
    assert found.input_ids.tolist() == [1, 2, 3, 4, 5] and found.starts == (2, 4)
    assert found.parents is not None and found.parents.tolist() == [-1, 0, 0]
    assert found.kept.tolist() == [3, 4]
    assert [each.tolist() for each in found.positions] == [[0, 1], [2, 3], [2]]
    same = with_shared_beginning(pair([1, 2], [1, 2]))
    assert same.input_ids.tolist() == [1, 2, 2] and same.kept.tolist() == [1, 2]
    different = pair([1, 2], [3, 2])
    assert with_shared_beginning(different) is different
