"""Derived seeds stay what they are: every stored result depends on them."""

from __future__ import annotations

from everlearn.seeds import derive


def test_a_seed_and_its_purpose_always_give_the_same_number() -> None:
    assert derive(42, "stage-1", "training") == 1393818774


def test_every_part_of_the_purpose_counts_by_itself() -> None:
    found = {derive(1, 23), derive(12, 3), derive(123), derive(1, 2, 3), derive(1, "2/3a"), derive(2, 23)}
    assert len(found) == 6


def test_a_seed_has_31_bits() -> None:
    found = [derive(seed) for seed in range(200)]
    assert 2**30 < max(found) < 2**31
    assert min(found) >= 0
