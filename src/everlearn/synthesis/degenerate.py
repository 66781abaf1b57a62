"""Rows that are no instance of their task although they have its form: what the demonstrations never do.

Real base models write some: answers that repeat the question, answers of a full stop, and questions in the language
of the answers (a Spanish sentence to be translated into Spanish). Each is dropped only where the demonstrations show
that the task has none such, so that tasks which copy, answer in signs, or ask and answer in one language lose
nothing. Chosen here, for the improved preset.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import regex

from everlearn.data.instance import Instance

CLEAR = 3
"""Words of the answers' language alone, and none of the inputs', that make an input one of the other side. With the 20
demonstrations of SuperNI's task 1219 (English to Spanish) that tells 77 % of 2,000 Spanish sentences and no English
one; its other nine tasks are left alone."""


class Expected:
    """What a task's demonstrations let expect of its other rows.

    Args:
        demonstrations: Of the pool.
        labels: The answers of a task that has a closed set of them.
    """

    def __init__(self, demonstrations: Sequence[Instance], labels: Sequence[str] = ()) -> None:
        self._pool = [(row.instruction, row.input, row.output) for row in demonstrations]
        self._has_signs = any(not _has_words(text) for text in (*(row[-1] for row in self._pool), *labels))
        copies = [_copies(*row) for row in self._pool]
        self._copies_exactly = any(exactly for exactly, _ in copies)
        self._copies_words = any(words for _, words in copies)

    def fault_of_answer(self, instruction: str, question: str, answer: str) -> str | None:
        """What is wrong with an answer: `copy_of_input`, `no_letter` or None (also where there is no answer yet)."""
        if not answer or not self._pool:
            return None
        exactly, words = _copies(instruction, question, answer)
        if (exactly and not self._copies_exactly) or (words and not self._copies_words):
            return "copy_of_input"
        return None if self._has_signs or _has_words(answer) else "no_letter"

    def is_answers_language(self, question: str) -> bool:
        """Whether an input is written as only answers are.

        By script: it has letters of scripts that the demonstrations' answers have, and none of a script that any of
        their inputs has. By words, where those tell the demonstrations' own two sides apart (no input taken for an
        answer, most answers known as such, each judged by the others): at least `CLEAR` words that only answers have,
        and none that only inputs have.
        """
        found = _scripts(question)
        asked, answered = self._scripts
        return bool(found & answered and not found & asked) or (self._tells_sides and self._is_other_side(question))

    @cached_property
    def _scripts(self) -> tuple[set[str], set[str]]:
        """Of all inputs, and of all answers."""
        asked, answered = zip(*((row[1], row[2]) for row in self._pool), strict=True) if self._pool else ((), ())
        return _scripts("".join(asked)), _scripts("".join(answered))

    @cached_property
    def _words(self) -> tuple[Counter[str], Counter[str]]:
        """How many inputs, and how many answers, have each word."""
        asked, answered = (Counter(word for row in self._pool for word in _letters(row[side])) for side in (1, 2))
        return asked, answered

    @cached_property
    def _tells_sides(self) -> bool:
        told = [tuple(self._is_other_side(row[side], row) for side in (1, 2)) for row in self._pool]
        return not any(asked for asked, _ in told) and 2 * sum(answered for _, answered in told) > len(told)

    def _is_other_side(self, text: str, own: tuple[str, str, str] = ("", "", "")) -> bool:
        """By the words of the demonstrations but for its own."""
        asked, answered = self._words
        in_own, in_answer = _letters(own[1]), _letters(own[2])
        known = [(asked[word] > (word in in_own), answered[word] > (word in in_answer)) for word in _letters(text)]
        return known.count((False, True)) >= CLEAR and (True, False) not in known


def _copies(instruction: str, question: str, answer: str) -> tuple[bool, bool]:
    """Whether an answer repeats what was asked, but for white space; and word for word."""
    asked = [text for text in (question, instruction, f"{instruction} {question}") if text.strip()]
    exactly = answer.split() in [text.split() for text in asked]
    words = _words_of(answer)
    return exactly, bool(words) and words in [_words_of(text) for text in asked]


def _words_of(text: str) -> list[str]:
    """Words without capitals and signs."""
    return regex.findall(r"[\p{L}\p{M}\p{N}]+", unicodedata.normalize("NFKC", text).casefold())


def _letters(text: str) -> set[str]:
    """The words that have no digit."""
    return {word for word in _words_of(text) if not regex.search(r"\p{N}", word)}


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


def _scripts(text: str) -> set[str]:
    """Names of the scripts of a text's letters, by the first word of each letter's name."""
    return {_script(letter) for letter in {*text} if letter.isalpha()}


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]
