"""Random token rows with shared beginnings, for tests of the training step."""

from __future__ import annotations

import random

from everlearn.training.rows import EncodedRow


def random_rows(count: int, *, seed: int = 0, prefixes: int = 3, vocabulary: int = 100) -> list[EncodedRow]:
    """Rows that begin with one of a few prefixes and differ in length from there on."""
    draw = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(4, vocabulary) for _ in range(draw.randrange(least, most))]

    beginnings = [[1, *tokens(5, 30)] for _ in range(prefixes)]
    rows = []
    for _ in range(count):
        prompt = draw.choice(beginnings) + tokens(0, 40)
        rows.append(EncodedRow((*prompt, *tokens(1, 12), 2), len(prompt)))
    return rows
