"""The computed shuffle is a permutation, looks shuffled, and depends on nothing but seed, version and index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.training.block_order import BlockOrder, permuted


@settings(max_examples=60)
@given(size=st.integers(1, 700), seed=st.integers(0, 1 << 31))
def test_every_index_is_reached_once(size: int, seed: int) -> None:
    assert sorted(permuted(np.arange(size), size, seed)) == list(range(size))


def test_the_order_is_shuffled_and_follows_the_seed() -> None:
    size = 5000
    one, two = (permuted(np.arange(size), size, seed) for seed in (1, 2))
    assert not np.array_equal(one, two)
    for order in (one, two):
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert (np.diff(order) == 1).mean() < 0.005


def test_parts_of_the_order_can_be_asked_for_alone() -> None:
    whole = permuted(np.arange(1000), 1000, 7)
    assert permuted(np.array([999, 0, 500]), 1000, 7).tolist() == whole[[999, 0, 500]].tolist()


def test_each_version_reads_its_own_blocks_once() -> None:
    order = BlockOrder((3, 2), (14, 8), batch_blocks=4, seed=5)
    first = [sample for position in range(3) for sample in order.at(position)]
    second = [sample for position in range(3, 5) for sample in order.at(position)]
    assert {version for version, _ in first} == {0}
    assert len(set(first)) == 12
    assert sorted(second) == [(1, block) for block in range(8)]


@pytest.mark.parametrize("until", [3, 5])
def test_a_mixed_order_reads_the_same_samples_in_another_order(until: int) -> None:
    order = BlockOrder((3, 2), (14, 8), batch_blocks=4, seed=5)
    arrival = [sample for position in range(until) for sample in order.at(position)]
    mixed = [sample for position in range(until) for sample in order.at(position, mixed_until=until)]
    assert sorted(arrival) == sorted(mixed)
    assert arrival != mixed


def test_a_later_version_does_not_change_the_order_of_the_earlier_ones() -> None:
    before = BlockOrder((3, 2), (14, 8), batch_blocks=4, seed=5)
    after = BlockOrder((3, 2, 6), (14, 8, 30), batch_blocks=4, seed=5)
    assert [before.at(position) for position in range(5)] == [after.at(position) for position in range(5)]


def test_replay_draws_from_the_earlier_versions_alone_and_from_all_of_them() -> None:
    order = BlockOrder((30, 20, 20), (140, 90, 90), batch_blocks=4, seed=5)
    drawn = [sample for position in range(50, 70) for sample in order.earlier(position, 50, 2)]
    assert {version for version, _ in drawn} == {0, 1}
    assert len(set(drawn)) == len(drawn) == 40
    assert order.earlier(60, 50, 2) == order.earlier(60, 50, 2)
