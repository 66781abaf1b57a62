"""Similarity of texts and the search for repetitions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.synthesis.similarity import first_of_each_kind, greatest_similarity, normalised, shingles, similarity


def test_similarity_is_the_share_of_common_shingles() -> None:
    assert shingles("abcde") == {"abcd", "bcde"}
    assert similarity("abcde", "abcdf") == pytest.approx(1 / 3)
    assert similarity("Ab  c\nde", "ab c de") == 1.0
    assert similarity("ab", "cd") == 0.0


def test_short_and_empty_texts_are_their_own_shingle() -> None:
    assert shingles("ab") == {"ab"}
    assert similarity("", "") == 1.0


@pytest.mark.parametrize(("one", "other"), [("ＡＢＣ１", "abc1"), ("STRASSE", "straße"), ("e\u0301te", "éte")])
def test_width_case_and_encoding_do_not_matter(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_texts_without_spaces_are_compared_too() -> None:
    assert similarity("今天天气很好我们去公园", "今天天气很好我们去河边") > 0.4
    assert similarity("今天天气很好我们去公园", "他昨天买了三本新书回家") == 0.0


def test_repetitions_are_found_in_order_and_what_repeats_is_not_known() -> None:
    texts = ["red apple falls", "Red  apple falls", "blue pear rises slowly", "a demo text"]
    assert first_of_each_kind(texts, ["a demo text"], 0.9) == [None, 0, None, -1]


def test_a_text_that_was_dropped_does_not_drop_others() -> None:
    chain = ["abcdefghij", "abcdefghijkl", "abcdefghijklmn"]  # each is like the one before only
    assert similarity(chain[0], chain[1]) > 0.75 > similarity(chain[0], chain[2])
    assert similarity(chain[1], chain[2]) > 0.75
    assert first_of_each_kind(chain, [], 0.75) == [None, 0, None]


def test_a_bound_of_one_finds_equal_texts_only() -> None:
    assert first_of_each_kind(["aaaa b", "aaaa c", "AAAA b"], [], 1.0) == [None, None, 0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abc ", max_size=12), max_size=20), st.floats(0.1, 1.0))
def test_the_search_equals_comparing_all_pairs(texts: list[str], bound: float) -> None:
    known = ["abc abc", "cab"]
    expected: list[int | None] = []
    for at, text in enumerate(texts):
        earlier = [(-1 - place, other) for place, other in enumerate(known)]
        earlier += [(place, texts[place]) for place in range(at) if expected[place] is None]
        expected.append(0 if any(text_is_same(text, other, bound) for _, other in earlier) else None)
    found = first_of_each_kind(texts, known, bound)
    assert [None if place is None else 0 for place in found] == expected


def text_is_same(one: str, other: str, bound: float) -> bool:
    return normalised(one) == normalised(other) or similarity(one, other) > bound + 1e-7


def test_texts_just_as_alike_as_the_bound_are_not_the_same() -> None:
    assert similarity("abcde", "abcd") == 0.5
    assert first_of_each_kind(["abcde", "abcd"], [], 0.5) == [None, None]


def test_more_texts_than_a_block_are_compared_across_blocks() -> None:
    stream = random.Random(0)
    texts = [" ".join(stream.choice("abcdefgh") * 5 for _ in range(6)) for _ in range(600)]
    found = first_of_each_kind([*texts, *texts], [], 1.0)
    assert all(place is not None for place in found[600:])


def test_the_greatest_similarity_of_a_pool() -> None:
    assert greatest_similarity(["abcde", "abcdf", "zzzzz"]) == pytest.approx(1 / 3)
    assert greatest_similarity(["alone"]) == 0.0
