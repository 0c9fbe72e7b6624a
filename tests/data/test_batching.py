"""The plan of micro-batches: every row once, equal numbers per rank, never more tokens than asked."""

from __future__ import annotations

import pytest
import torch
from tiny import RandomExamples, batching

from tunecli.data.batching import collate, microbatches
from tunecli.data.order import epoch_order, examples_between

LENGTHS = [3, 30, 7, 7, 12, 2, 25, 9, 16, 5, 4, 28, 6]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("cut", [{"rows": 1}, {"rows": 4}, {"rows": None, "tokens": 32}])
@pytest.mark.parametrize("packed", [True, False])
def test_every_row_is_in_one_micro_batch_of_one_rank(processes: int, cut: dict, packed: bool) -> None:
    examples = RandomExamples(LENGTHS)
    indices = [12, 3, 5, 0, 8, 7, 1, 10, 2, 11]
    ranks = [
        microbatches(examples, indices, batching(process=rank, of=processes, packed=packed, **cut))
        for rank in range(processes)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    rows = [row for batches in ranks for batch in batches for row in batch.rows]
    assert sorted(rows) == sorted(indices)
    weight = sum(batch.weights.sum() for batches in ranks for batch in batches)
    assert weight == sum(examples[i].trained.sum() for i in indices)
    tokens = sum(batch.num_tokens for batches in ranks for batch in batches)
    assert tokens == sum(LENGTHS[i] for i in indices)
    if cut.get("tokens"):
        assert all(batch.input_ids.numel() <= 32 for batches in ranks for batch in batches)


def test_a_rank_without_rows_gets_fillers_of_no_weight() -> None:
    batches = microbatches(RandomExamples(LENGTHS), [1], batching(process=1, of=2))
    assert len(batches) == 1
    assert batches[0].weights.sum() == 0
    assert batches[0].rows == () and batches[0].num_tokens == 0
    assert len(batches[0].targets) > 0  # the head still gets its gradient, of zeros


@pytest.mark.parametrize("packed", [True, False])
def test_targets_are_the_trained_tokens_and_kept_the_positions_before_them(packed: bool) -> None:
    examples = RandomExamples(LENGTHS)
    batch = collate(examples, [4, 2, 6], batching(packed=packed))
    flat = batch.input_ids.flatten()
    assert torch.equal(flat[batch.kept + 1], batch.targets)
    expected = torch.cat([examples[i].input_ids[examples[i].trained] for i in (4, 2, 6)])
    assert torch.equal(batch.targets, expected)
    # A sequence's first token is never a target: nothing of its own sequence predicts it.
    assert not set((batch.kept + 1).tolist()) & set((batch.position_ids.flatten() == 0).nonzero()[:, 0].tolist())


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(50, seed=1, epoch=0)
    assert sorted(first) == list(range(50))
    assert (first == epoch_order(50, seed=1, epoch=0)).all()
    assert (first != epoch_order(50, seed=1, epoch=1)).any()
    assert (first != epoch_order(50, seed=2, epoch=0)).any()


def test_any_slicing_of_the_stream_gives_the_same_examples() -> None:
    whole = examples_between(0, 60, 13, seed=4)
    pieces = [i for start in range(0, 60, 7) for i in examples_between(start, min(start + 7, 60), 13, seed=4)]
    assert pieces == whole
    assert sorted(whole[13:26]) == list(range(13))
