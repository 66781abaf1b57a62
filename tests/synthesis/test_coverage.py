"""Selection by coverage: every word before a second of the common ones, oddities last, lengths of no account."""

from __future__ import annotations

import random

from everlearn.synthesis.coverage import coverage_order


def test_no_word_of_the_candidates_is_left_out_while_there_are_places() -> None:
    words = [a + b for a in ("zo", "mi", "ta", "ke", "lu") for b in ("rane", "fod", "supi")]
    draw = random.Random(0)
    texts = [" ".join(draw.choice(words) for _ in range(3)) for _ in range(60)]
    chosen = coverage_order(texts, 10)
    assert {word for at in chosen for word in texts[at].split()} == set(words)
    typical = {word for text in texts[:10] for word in text.split()}
    assert typical != set(words), "ten rows as they come leave words out"


def test_every_beginning_of_the_order_is_the_choice_of_that_size() -> None:
    texts = ["a red car stops", "a blue van turns", "a red van stops", "a red car turns"]
    assert coverage_order(texts, 4)[:2] == coverage_order(texts, 2)
    assert sorted(coverage_order(texts, 4)) == [0, 1, 2, 3]


def test_an_odd_row_comes_after_those_that_stand_for_many() -> None:
    texts = ["qqqq xxxx zzzz", *["the red car"] * 5, *["the old van"] * 5]
    assert {texts[at] for at in coverage_order(texts, 2)} == {"the red car", "the old van"}


def test_a_long_row_is_no_better_than_a_short_one_with_the_same_words() -> None:
    long = "the red car the red car and the red car and the red car on the road of the red car"
    assert coverage_order([long, *["the red car"] * 20], 1) == [1]


def test_of_equal_rows_the_first_is_taken_and_of_none_nothing() -> None:
    assert coverage_order(["same", "same"], 1) == [0]
    assert coverage_order([], 3) == []
    assert coverage_order(["one"], 3) == [0]
