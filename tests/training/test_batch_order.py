"""The order of rows: every epoch whole, shuffled, and a function of the seed."""

from __future__ import annotations

from itertools import chain

from everlearn.training.batch_order import batches


def test_every_epoch_holds_every_row_once_with_a_smaller_last_batch() -> None:
    steps = batches(10, batch_size=4, epochs=2, seed=1)
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    assert sorted(chain(*steps[:3])) == sorted(chain(*steps[3:])) == list(range(10))
    assert steps[:3] != steps[3:]


def test_the_published_stage_has_63_steps_an_epoch() -> None:
    assert len(batches(2000, batch_size=32, epochs=3, seed=42)) == 189
    assert len(batches(2800, batch_size=32, epochs=3, seed=42)) == 264


def test_a_fractional_epoch_is_cut_short_but_never_empty() -> None:
    assert len(batches(100, batch_size=10, epochs=1.5, seed=1)) == 15
    assert len(batches(100, batch_size=10, epochs=1.25, seed=1)) == 13
    assert len(batches(100, batch_size=10, epochs=0.01, seed=1)) == 1


def test_the_seed_decides_the_order() -> None:
    assert batches(50, batch_size=8, epochs=1, seed=1) == batches(50, batch_size=8, epochs=1, seed=1)
    assert batches(50, batch_size=8, epochs=1, seed=1) != batches(50, batch_size=8, epochs=1, seed=2)
