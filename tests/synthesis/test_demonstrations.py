"""Ordered subsets of the pool, and pools that are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from everlearn.data.instance import Instance, Turn
from everlearn.errors import DataError
from everlearn.synthesis.demonstrations import check_demonstrations, layout_of, ordered_subsets

ROWS = [Instance("Define.", f"x{at}", f"y{at}", "t", id=f"r{at}") for at in range(4)]


def test_twenty_rows_and_pairs_give_380_prompts() -> None:
    assert len(ordered_subsets(20, 2)) == 380


@pytest.mark.parametrize(("size", "length"), [(4, 1), (4, 2), (5, 3), (3, 3)])
def test_subsets_are_in_lexicographic_order(size: int, length: int) -> None:
    assert ordered_subsets(size, length) == list(permutations(range(size), length))


def test_a_cap_draws_by_seed_and_keeps_the_order() -> None:
    drawn = ordered_subsets(20, 2, most=30, seed=1)
    assert len(set(drawn)) == 30
    assert drawn == sorted(drawn)
    assert drawn == ordered_subsets(20, 2, most=30, seed=1)
    assert drawn != ordered_subsets(20, 2, most=30, seed=2)


def test_a_cap_on_a_huge_pool_lists_only_what_is_used() -> None:
    assert len(ordered_subsets(1000, 5, most=10)) == 10


def test_one_shared_instruction_means_superni() -> None:
    assert layout_of(ROWS) == "superni"
    assert layout_of([*ROWS, Instance("Another.", "x", "y", "t")]) == "alpaca"
    assert layout_of([*ROWS, Instance("Define.", "", "y", "t")]) == "alpaca"


@pytest.mark.parametrize(
    ("rows", "length", "layout", "message"),
    [
        ([], 2, "auto", r"task sums has no demonstrations.*set its `demonstrations`"),
        (ROWS, 5, "auto", r"task sums has 4 demonstrations but a prompt shows 5: lower"),
        ([*ROWS, replace(ROWS[0], instruction="B", id="odd")], 2, "superni", r"demonstration odd has another.*alpaca"),
        ([*ROWS, replace(ROWS[0], input="", id="bare")], 2, "superni", r"demonstration bare has no input"),
        (
            [*ROWS, replace(ROWS[0], history=(Turn("user", "hi"),), id="chat")],
            2,
            "auto",
            r"demonstration chat.*longer",
        ),
    ],
)
def test_unusable_pools_are_refused_with_a_remedy(
    rows: list[Instance], length: int, layout: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_demonstrations("sums", rows, length, layout)


def test_a_system_message_that_all_share_is_allowed() -> None:
    system = (Turn("system", "Be brief."),)
    check_demonstrations("sums", [replace(row, history=system) for row in ROWS], 2, "auto")
