"""The order of training: every example once per epoch, shares kept, the same whoever asks and in whatever pieces."""

from __future__ import annotations

import numpy as np
import pytest

from tunecli.data.order import SLOTS, SourceSlots, epoch_order, examples_between


def test_an_epoch_is_a_permutation_and_depends_on_all_that_names_it():
    orders = [
        tuple(epoch_order(50, **{"seed": 1, "epoch": 0} | change))
        for change in ({}, {"seed": 2}, {"epoch": 1}, {"block": 1}, {"source": 1}, {"block": 1, "source": 1})
    ]
    assert len(set(orders)) == len(orders)
    assert all(sorted(order) == list(range(50)) for order in orders)


@pytest.mark.parametrize("cut", [1, 7, 20, 41])
def test_pieces_make_the_whole(cut: int):
    whole = examples_between(0, 60, 20, seed=4)
    assert examples_between(0, cut, 20, seed=4) + examples_between(cut, 60, 20, seed=4) == whole
    assert [sorted(whole[i : i + 20]) for i in (0, 20, 40)] == [list(range(20))] * 3


@pytest.mark.parametrize("shares", [[1, 1], [5, 3, 1], [0.7, 0.2999, 0.0001], [1] * 30])
def test_shares_hold_in_every_block_and_in_the_long_run(shares: list[float]):
    slots = SourceSlots(shares, seed=0)
    wanted = np.array(shares) / sum(shares)
    blocks = [np.bincount(slots.between(k * SLOTS, (k + 1) * SLOTS), minlength=len(shares)) for k in range(200)]
    assert all((np.abs(block - wanted * SLOTS) < 1).all() for block in blocks)
    # Rounding up or down by chance: the sum over blocks is off by the root of their number, not by their number.
    assert (np.abs(sum(blocks) - wanted * SLOTS * 200) < 4 * np.sqrt(200 / 4) + 1).all()


def test_counts_before_a_place_are_what_came_before_it():
    whole = SourceSlots([3, 1, 2], seed=7).between(0, 5000)
    for place in (0, 1, 999, 1000, 1001, 4321):
        counts = np.bincount(whole[:place], minlength=3)
        assert SourceSlots([3, 1, 2], seed=7).before(place).tolist() == counts.tolist()
        assert (SourceSlots([3, 1, 2], seed=7).between(place, 5000) == whole[place:]).all()


def test_another_seed_is_another_order():
    assert (SourceSlots([1, 1], seed=0).between(0, 100) != SourceSlots([1, 1], seed=1).between(0, 100)).any()
