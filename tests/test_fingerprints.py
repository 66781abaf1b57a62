"""Hashes of JSON, whole or as it comes."""

from __future__ import annotations

from everlearn.data.instance import Instance, Task
from everlearn.fingerprints import fingerprint_of


def test_an_iterator_has_the_hash_of_its_list() -> None:
    rows = [{"b": 1, "a": "ü"}, {"c": [1, 2]}]
    whole = fingerprint_of(rows, "x", [rows], [], [[]])
    assert fingerprint_of(iter(rows), "x", iter([iter(rows)]), iter(()), iter([iter(())])) == whole
    assert fingerprint_of(rows, "x") != fingerprint_of(rows[:1], "x") != fingerprint_of(rows[:1])


def test_so_has_a_long_one() -> None:
    rows = [[at, "x"] for at in range(1000)]
    for count in (255, 256, 257, 1000):
        assert fingerprint_of(iter(rows[:count])) == fingerprint_of(rows[:count])
        assert fingerprint_of(iter([*rows[:count], iter(rows)])) == fingerprint_of([*rows[:count], rows])


def test_a_task_has_the_hash_that_it_had_in_the_first_releases() -> None:
    row = Instance("Say it.", "a", "b", "t", id="1")
    task = Task("t", (row, row), (row,), metric="accuracy", labels=("b",))
    rows = [row.to_json()]
    assert task.fingerprint() == fingerprint_of(["t", "accuracy", ["b"]], [rows * 2], [rows], [[]])
