from __future__ import annotations

from importlib import resources

from everlearn.data.general import general_passages


def test_the_general_text_that_ships_is_forty_passages_of_plain_prose():
    passages = general_passages()
    assert len(passages) == len(set(passages)) == 40
    assert all(60 <= len(passage.split()) <= 100 and "\n" not in passage for passage in passages)


def test_the_general_text_is_small():
    assert len((resources.files("everlearn.data") / "general_text.txt").read_bytes()) < 25_000
