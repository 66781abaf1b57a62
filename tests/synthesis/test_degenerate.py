"""Rows that no demonstration is like are told by kind, and tasks whose demonstrations are like them lose nothing."""

from __future__ import annotations

import pytest

from everlearn.data.instance import Instance
from everlearn.synthesis.degenerate import Expected

ENGLISH = ["the cat sleeps on the old chair", "my father reads the paper in the morning", "we walk to the market"]
ENGLISH += ["the children play in the garden", "she wrote a letter to the mayor", "where is the station of the town"]
SPANISH = ["el gato duerme en la silla vieja", "mi padre lee el diario en la noche", "vamos a la feria en el centro"]
SPANISH += [
    "los chicos juegan en el patio",
    "ella ha escrito al alcalde de la villa",
    "donde queda la parada de la villa",
]
RUSSIAN = ["кошка спит на стуле", "отец читает утром", "мы идём на рынок", "дети играют", "она пишет", "где вокзал"]
CHINESE = ["猫在椅子上睡觉", "我父亲早上看报", "我们去市场", "孩子们在玩", "她写信", "车站在哪里"]
HINDI = ["बिल्ली कुर्सी पर सोती है", "मेरे पिता पढ़ते हैं", "हम बाज़ार जाते हैं", "बच्चे खेलते हैं", "वह लिखती है", "स्टेशन कहाँ है"]


def task(inputs: list[str], answers: list[str], labels: tuple[str, ...] = ()) -> Expected:
    pairs = zip(inputs, answers, strict=True)
    return Expected([Instance("Do it.", asked, answer, "t") for asked, answer in pairs], labels)


TRANSLATION = task(ENGLISH, SPANISH)
LABELLING = task(ENGLISH, ["animal", "person", "place", "person", "person", "place"])
SIGNS = task(ENGLISH, ["+", "-", "+", "-", "+", "-"])
FAIR_COPY = task(["the cat slep", "my father reads"], ["the cat sleeps", "my father reads"])  # some need no mending
PUNCTUATION = task(["the cat sleeps", "where is he"], ["The cat sleeps.", "Where is he?"])
INVENTED = Expected([Instance("Name a colour.", "", "red", "t"), Instance("Add.", "1 2", "3", "t")])


@pytest.mark.parametrize(
    ("expected", "asked", "answer", "fault"),
    [
        (TRANSLATION, "the dog runs", "el perro corre", None),
        (TRANSLATION, "the dog runs", "the dog runs", "copy_of_input"),
        (TRANSLATION, "the dog  runs\n", "the dog runs", "copy_of_input"),
        (TRANSLATION, "the dog runs", "The dog runs.", "copy_of_input"),
        (TRANSLATION, "the ﬁsh\u00a0swims", "The fish swims!", "copy_of_input"),
        (TRANSLATION, "the dog runs", "the dog runs away", None),
        (TRANSLATION, "the dog runs", "Do it.", "copy_of_input"),
        (TRANSLATION, "the dog runs", "Do it. the dog runs", "copy_of_input"),
        (TRANSLATION, "the dog runs", ".", "no_letter"),
        (TRANSLATION, "the dog runs", "…?!", "no_letter"),
        (TRANSLATION, "the dog runs", "😀", "no_letter"),
        (TRANSLATION, "...", "...", "copy_of_input"),
        (TRANSLATION, "the dog runs", "7", None),
        (TRANSLATION, "the dog runs", "狗", None),
        (TRANSLATION, "the dog runs", "", None),
        (task(ENGLISH, HINDI), "कि", "का", None),
        (SIGNS, "the dog runs", "?", None),
        (task(ENGLISH, ["good"] * 6, ("good", ":-(")), "the dog runs", ":-(", None),
        (FAIR_COPY, "the dog runs", "the dog runs", None),
        (PUNCTUATION, "the dog runs", "The dog runs.", None),
        (PUNCTUATION, "the dog runs", "the dog runs", "copy_of_input"),
        (INVENTED, "", "Name a colour.", "copy_of_input"),
        (INVENTED, "", "blue", None),
        (Expected([]), "the dog runs", "the dog runs", None),
    ],
)
def test_an_answer_is_at_fault_where_no_demonstration_is_like_it(
    expected: Expected, asked: str, answer: str, fault: str | None
) -> None:
    instruction = "Name a colour." if expected is INVENTED else "Do it."
    assert expected.fault_of_answer(instruction, asked, answer) == fault


@pytest.mark.parametrize(
    ("expected", "asked", "is_other_side"),
    [
        (TRANSLATION, "el padre duerme en la villa", True),
        (TRANSLATION, "the father sleeps in the town", False),
        (TRANSLATION, "Villa Alcalde", False),  # too little to tell
        (TRANSLATION, "the song el gato en la villa", False),  # quoted
        (TRANSLATION, "no idea 42 !!!", False),
        (task(ENGLISH, RUSSIAN), "собака бежит", True),
        (task(ENGLISH, RUSSIAN), "the word собака", False),
        (task(RUSSIAN, ENGLISH), "dogs run", True),
        (task(ENGLISH, CHINESE), "狗跑了", True),
        (task(CHINESE, ENGLISH), "dogs run", True),
        (task(["iPhone 很好", *CHINESE[1:]], ENGLISH), "iPhone", False),
        (task(ENGLISH, HINDI), "कुत्ता दौड़ता है", True),
        (task([*ENGLISH, *RUSSIAN], ["english"] * 6 + ["russian"] * 6), "english", False),
        (task(RUSSIAN, ["1", "0", "1", "0", "1", "0"]), "dogs run", False),
        (LABELLING, "animal person place", False),
        (task(ENGLISH, ENGLISH[::-1]), "the letter in the garden", False),
        (TRANSLATION, "", False),
        (Expected([]), "el padre duerme en la villa", False),
    ],
)
def test_an_input_in_the_answers_language_is_told_by_script_or_by_words(
    expected: Expected, asked: str, is_other_side: bool
) -> None:
    assert expected.is_answers_language(asked) is is_other_side


def test_words_judge_only_where_they_tell_the_demonstrations_two_sides_apart() -> None:
    assert not any(TRANSLATION.is_answers_language(text) for text in ENGLISH)
    mixed = task([*ENGLISH, SPANISH[0]], [*SPANISH, ENGLISH[0]])  # asks both ways
    assert not mixed.is_answers_language("el padre duerme en la villa")
