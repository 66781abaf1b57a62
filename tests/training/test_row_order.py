"""The order of rows: every epoch whole, shuffled, and a function of the seed."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from everlearn.data.instance import Instance
from everlearn.data.mixture import Group
from everlearn.training.row_order import Batches, Passes, epochs_of, inserted

GERE = Path(__file__).parents[1] / "golden" / "gere"
INSERTIONS = json.loads((GERE / "batch_insertion.json").read_text())["cases"]


def test_every_epoch_holds_every_row_once_with_a_smaller_last_batch() -> None:
    steps = Batches(10, batch_size=4, epochs=2, seed=1)
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = list(steps)[:3], list(steps)[3:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second


def test_the_published_stage_has_63_steps_an_epoch() -> None:
    assert len(Batches(2000, batch_size=32, epochs=3, seed=42)) == 189
    assert len(Batches(2800, batch_size=32, epochs=3, seed=42)) == 264


def test_a_fractional_epoch_is_cut_short_but_never_empty() -> None:
    assert len(Batches(100, batch_size=10, epochs=1.5, seed=1)) == 15
    assert len(Batches(100, batch_size=10, epochs=1.25, seed=1)) == 13
    assert len(Batches(100, batch_size=10, epochs=0.01, seed=1)) == 1


def test_the_seed_decides_the_order() -> None:
    orders = [list(Batches(50, batch_size=8, epochs=1, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_an_order_of_any_length_costs_nothing_and_any_step_can_be_asked_for() -> None:
    order = Batches(10, batch_size=4, epochs=1e12, seed=1)
    assert len(order) == 3 * 10**12
    assert len(order[10**12]) == 4
    assert order[7] == list(Batches(10, batch_size=4, epochs=3, seed=1))[7]


def test_a_group_of_every_step_is_passed_over_whole_again_and_again() -> None:
    rows = [Instance("", str(at), "x", "t") for at in range(5)]
    passes = Passes(Group("memory", rows, per_step=3), 10, seed=1)
    drawn = [number for step in range(10) for number in passes[step]]
    assert all(len(passes[step]) == 3 for step in range(10))
    assert [sorted(drawn[at : at + 5]) for at in range(0, 30, 5)] == [list(range(5))] * 6


@pytest.mark.parametrize("case", INSERTIONS, ids=lambda case: case["id"])
def test_texts_are_inserted_into_batches_as_published(case: dict) -> None:
    """GeRe's golden insertion; the places within a batch, on which no loss depends, are those of the case."""
    draws, count = case["draws"], case["replay_per_batch"]
    size = case["batch_size"] - count
    order = draws["task_order"]
    groups = [order[at : at + size] for at in range(0, len(order), size)]
    orders = iter([*draws["replay_orders"], []])
    plan = inserted(epochs_of(groups), count, lambda: next(orders))
    found = []
    for group, texts, places in zip(groups, plan, draws["positions_by_batch"], strict=True):
        batch, waiting = list(group), iter(texts)
        for place in sorted(places, reverse=True):
            batch.insert(place, next(waiting))
        found.append(batch)
    assert [row for batch in found for row in batch] == case["expected_order"]
    assert [len(batch) for batch in found] == case["expected_batch_sizes"]
    assert sum(map(len, found)) == case["expected_length"]


def test_each_epoch_begins_with_a_new_order_of_the_texts() -> None:
    orders = iter([[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]])
    assert epochs_of([[0, 1], [2], [1, 2], [0], [2, 0]]) == [2, 2, 1]
    assert inserted([2, 2], 2, lambda: next(orders)) == [[0, 1], [2, 2], [1, 0], [2, 0]]
