"""Two made-up languages for the embedded model: each has words of its own for the same things, and its own order.

A row gives a phrase and its translation. The first task, the primer, has phrases of both languages with a short walk:
word by word, what it is called. The walk is in the order of the phrase, the translation in that of the language, so
that it follows from the walk by the rule of order alone. A task of each language follows, of other phrases and without
walks. Plain methods train on the answers of all rows and do not see the walks. Words and grammar are those of the
embedded stream.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Draws the primer and a task of each language.

    Args:
        seed: Draws the rows; words and orders are always the same.
        train: Training rows of each task; those of the primer are of both languages in turn.
        evaluation: Evaluation rows of each, of other phrases.
    """
    count, few = train + evaluation, train // 3
    drawn = [_draw(language, seed, 2 * count) for language in LANGUAGES]
    both = [row for rows in zip(*(rows[count:] for rows in drawn), strict=True) for row in rows]
    primer = [replace(row, task="primer", id=f"primer-{at}") for at, row in enumerate(both[: few + evaluation])]
    own = [[replace(row, walk="") for row in rows[:count]] for rows in drawn]
    return (_task(primer, few), *(_task(rows, train) for rows in own))


def _task(rows: Sequence[Instance], train: int) -> Task:
    kept = tuple(rows[:train])
    return Task(rows[0].task, kept, tuple(rows[train:]), kept[-DEMONSTRATIONS:], "exact_match")


def _draw(language: _Language, seed: int, count: int) -> list[Instance]:
    assert _TEMPLATE in RESERVED_TEMPLATES, "pre-training never saw the phrases"
    rng = random.Random(f"everlearn-embedded-{language.name}-{seed}")
    grammar, known = Grammar(_TEMPLATE), language.words
    phrases: dict[str, tuple[str, ...]] = {}
    while len(phrases) < count:
        text, words = grammar.fill(rng)
        phrases.setdefault(text, tuple(words))
    return [
        Instance(
            f"Translate the phrase into {language.name}.",
            text,
            " ".join(known[words[place]] for place in language.order),
            language.name,
            id=f"{language.name}-{at}",
            walk=f"{language.name} : " + " , ".join(f"{word} {known[word]}" for word in words),
        )
        for at, (text, words) in enumerate(phrases.items())
    ]
