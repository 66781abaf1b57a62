"""The order of rows: every epoch whole, shuffled, and a function of the seed."""

from __future__ import annotations

from itertools import chain, islice

from everlearn.training.batch_order import Batches


def batches(row_count: int, *, batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    return list(Batches(range(row_count), batch_size=batch_size, epochs=epochs, seed=seed))


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


def test_the_steps_after_some_are_those_of_the_whole_plan() -> None:
    steps = Batches(range(10), batch_size=4, epochs=2.5, seed=1)
    for done in (0, 2, 3, 8):
        assert list(steps.after(done)) == list(steps)[done:]


def test_a_plan_too_large_to_be_listed_is_drawn_step_by_step() -> None:
    steps = Batches(range(1000), batch_size=3, epochs=1e6, seed=1)
    assert len(steps) == 334 * 10**6
    assert [len(step) for step in islice(iter(steps), 334)] == [3] * 333 + [1]
    assert len(steps[len(steps) - 1]) == 1
