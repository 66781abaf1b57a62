"""Two made-up languages for the embedded model: each has words of its own for the same things, and its own order.

A row gives a phrase and its translation, half of the training rows also a short walk: word by word, what it is called.
The walk is in the order of the phrase, the translation in that of the language, so that it follows from the walk by
the rule of order alone. Plain methods train on the answers of all rows and do not see the walks. Words and grammar are
those of the embedded stream.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from everlearn.data.embedded.grammars import RESERVED_TEMPLATES, Grammar
from everlearn.data.embedded.stream import DEMONSTRATIONS
from everlearn.data.embedded.words import NONSENSE, POOLS
from everlearn.data.instance import Instance, Task

_TEMPLATE = "the {colour} {vehicle} {motion}"
_WORDS = (*POOLS["colour"], *POOLS["vehicle"], *POOLS["motion"])


@dataclass(frozen=True)
class _Language:
    """A name, the places of the phrase's words in a translation, and where its own words begin."""

    name: str
    order: tuple[int, ...]
    begin: int

    @property
    def words(self) -> dict[str, str]:
        return dict(zip(_WORDS, NONSENSE[self.begin :], strict=False))


LANGUAGES = (_Language("tolu", (2, 1, 0), 0), _Language("kesh", (1, 0, 2), len(_WORDS)))


def embedded_translations(seed: int = 0, *, train: int = 240, evaluation: int = 80) -> tuple[Task, ...]:
    """Draws a task of each language.

    Args:
        seed: Draws the rows; words and orders are always the same.
        train: Training rows of each.
        evaluation: Evaluation rows of each, of other phrases.
    """
    return tuple(_draw(language, seed, train, evaluation) for language in LANGUAGES)


def _draw(language: _Language, seed: int, train: int, evaluation: int) -> Task:
    assert _TEMPLATE in RESERVED_TEMPLATES, "pre-training never saw the phrases"
    rng = random.Random(f"everlearn-embedded-{language.name}-{seed}")
    grammar, known = Grammar(_TEMPLATE), language.words
    phrases: dict[str, tuple[str, ...]] = {}
    while len(phrases) < train + evaluation:
        text, words = grammar.fill(rng)
        phrases.setdefault(text, tuple(words))
    rows = tuple(
        Instance(
            f"Translate the phrase into {language.name}.",
            text,
            " ".join(known[words[place]] for place in language.order),
            language.name,
            id=f"{language.name}-{at}",
            walk=" , ".join(f"{word} {known[word]}" for word in words) if at < train // 2 else "",
        )
        for at, (text, words) in enumerate(phrases.items())
    )
    kept = rows[:train]
    return Task(language.name, kept, rows[train:], kept[-DEMONSTRATIONS:], "exact_match")
