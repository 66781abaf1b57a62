"""The generated corpus drifts: each version has new words and changed facts; the same seed gives the same text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from everlearn.data.embedded.drifting_corpus import (
    NEW_INVENTIONS,
    NEW_PEOPLE,
    NEW_TOWNS,
    documents_of,
    world_of,
    write_version,
)


def test_the_same_seed_gives_the_same_text() -> None:
    assert documents_of(3, 50, seed=1) == documents_of(3, 50, seed=1)
    assert documents_of(3, 50, seed=1) != documents_of(3, 50, seed=2)


def test_each_version_brings_new_names_and_keeps_the_old() -> None:
    worlds = [world_of(version, seed=0) for version in (1, 2, 3)]
    for before, after in pairwise(worlds):
        old, new = ({person.name for person in world.people} for world in (before, after))
        assert old < new
        assert len(new) - len(old) == NEW_PEOPLE
        assert len(after.towns) - len(before.towns) == NEW_TOWNS
        assert len(after.inventions) - len(before.inventions) == NEW_INVENTIONS


def test_some_facts_change_and_most_stay() -> None:
    before, after = world_of(1, seed=0), world_of(2, seed=0)
    moved = [one.town != two.town for one, two in zip(before.people, after.people, strict=False)]
    assert 0.05 < sum(moved) / len(moved) < 0.5
    assert [one.animal for one in before.people] == [two.animal for two in after.people[: len(before.people)]]


def test_texts_tell_of_what_is_new_and_of_what_is_old() -> None:
    new = {person.name for person in world_of(2, seed=0).people[-NEW_PEOPLE:]}
    documents = documents_of(2, 400, seed=0)
    share = sum(any(name in text for name in new) for text in documents) / len(documents)
    assert 0.5 < share < 0.95
    assert not any(name in text for text in documents_of(1, 400, seed=0) for name in new)


def test_documents_rarely_repeat() -> None:
    documents = documents_of(1, 2000, seed=0)
    assert len(set(documents)) > 0.98 * len(documents)


def test_a_version_is_a_plain_text_file_with_blank_lines_between_documents(tmp_path: Path) -> None:
    path = write_version(tmp_path, 2, documents=20, seed=3)
    assert path.read_text().strip().split("\n\n") == documents_of(2, 20, seed=3)
