"""Rows of translation: their languages, directions, and the published wording of R1-T1.

A row is asked by its `instruction`, which names both languages, and its `input`, the source alone; `output` is the
reference. Directions are evaluated as published: every other language to and from both pivots, then the pivots to
each other (78 for the 21 languages, not 80). Source: arXiv 2502.19735, `data/data_prepare.py` and
`evaluation/evaluate.py` (spec sections 4 and 7).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from everlearn.errors import nearest

if TYPE_CHECKING:
    from everlearn.data.instance import Instance

LANGUAGES = dict(
    pair.split(":")
    for pair in (
        "ar:Arabic cs:Czech de:German el:Greek en:English es:Spanish fr:French hi:Hindi hu:Hungarian id:Indonesian "
        "it:Italian ja:Japanese ko:Korean kr:Korean ms:Malaysian nl:Dutch pl:Polish pt:Portuguese ro:Romanian "
        "ru:Russian sv:Swedish th:Thai tl:Tagalog tr:Turkish uk:Ukrainian vi:Vietnamese zh:Chinese"
    ).split()
)
"""English names by code; `kr` and the name of `ms` are the published files' own."""
TRAINED = ("de", "en", "fr", "ja", "ru", "zh")
"""The published training languages."""
PIVOTS = ("en", "zh")

SYSTEM = (
    " You are a helpful assistant. The assistant first thinks about the reasoning process in the mind and "
    "then provides the translation. The reasoning process and translation are enclosed within <think> "
    "</think> and <answer> </answer> tags, respectively. i.e., <think> reasoning process here "
    "</think><answer> translated text here </answer>. Now the user asks you to translate a given text. After "
    "thinking, when you reach a conclusion, provide the translated text within <answer> </answer> tags. i.e., "
    "<answer> translated text here </answer>. "
)
"""Of the published prompt, white space included."""
_ASKED = re.compile(r"Please translate the following (.+) Source sentence into (.+)\.")

Group = Literal["seen-seen", "seen-unseen", "unseen-unseen"]


def language_name(language: str) -> str:
    """The English name of a language that is given by its code, or by its name with a capital.

    Raises:
        ValueError: the code is not known; the text is the end of a sentence.
    """
    if language in LANGUAGES:
        return LANGUAGES[language]
    if language[:1].isupper():
        return language
    guess = nearest(language, LANGUAGES)
    hint = f", did you mean {guess!r} ({LANGUAGES[guess]})?" if guess else ":"
    raise ValueError(f"the language code {language!r} is not known{hint} write the language's English name")


def asked(source_language: str, target_language: str) -> str:
    """The instruction of a row, its languages by their English names."""
    return f"Please translate the following {source_language} Source sentence into {target_language}."


def direction_of(row: Instance) -> tuple[str, str] | None:
    """The languages that a row is translated from and into, by the names in its instruction; None: it names none."""
    found = _ASKED.fullmatch(row.instruction)
    return (found[1], found[2]) if found else None


def quiz(row: Instance) -> str:
    """What the user says in the published prompt; a row that is asked otherwise is asked as it is."""
    return f"{row.instruction}\nSource sentence: {row.input}" if direction_of(row) else row.query


def directions(languages: Sequence[str], pivots: Sequence[str] = PIVOTS) -> list[tuple[str, str]]:
    """The directions that are evaluated."""
    there = [pivot for pivot in pivots if pivot in languages]
    others = [language for language in languages if language not in pivots]
    found = [pair for one in others for pivot in there for pair in ((one, pivot), (pivot, one))]
    return found + [(one, other) for one in there for other in there if one != other]


def group_of(source: str, target: str, seen: Collection[str] = TRAINED) -> Group:
    """Whether both languages of a direction were trained, one, or none."""
    known = (source in seen) + (target in seen)
    return "seen-seen" if known == 2 else "seen-unseen" if known else "unseen-unseen"
