"""Samples of a task's training rows: SSR's published 1 % / 5 % / 10 % sub-samples, for any ratio and count.

The training rows of SSR's data stand in random order already, so its samples are cut, not drawn: 10 % and 5 % are the
first 200 and 100 of 2000 rows, 1 % (the pool of demonstrations) the last 20. Rows of a classification task stand
class by class; then each class gives an equal part: 10 % is the first 100 of each half, 1 % the last 10 of the last
half followed by the last 10 of the first.
Source: files of DeepLearnXMU/SSR (spec section 7).

In general (chosen here): a sample of more than 1 % is cut from the front, one of at most 1 % from the end; parts are
equal, what does not divide evenly and what a short class cannot give comes from the classes that are taken first.
Classes count only for tasks with labels whose rows stand in one block a class.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from everlearn.data.instance import Instance, Task
from everlearn.errors import DataError
from everlearn.seeds import derive
from everlearn.shares import share_of

TAIL_RATIO = 0.01  # the published 1 % sample is the only one cut from the end


def published_sample(task: Task, ratio: float, *, rows_in_all: int | None = None) -> tuple[Instance, ...]:
    """The rehearsal sample of real rows of a task.

    Args:
        task: With its training rows in the order of the data.
        ratio: Part of the training rows, in (0, 1]; at least one row is taken.
        rows_in_all: Size of the full training split when `task` holds only a part of it.

    Returns:
        The rows in the published order.

    Raises:
        DataError: the ratio is out of range.
    """
    if not 0 < ratio <= 1:
        raise DataError(f"a sample of {ratio} of the rows of task {task.name}: give a ratio above 0 and up to 1.")
    count = max(1, round(share_of(ratio, rows_in_all or len(task.train))))
    cut = last_rows if ratio <= TAIL_RATIO else first_rows
    return cut(task.train, count, task.labels)


def drawn_rows(task: Task, count: int, seed: int, *purpose: str) -> list[Instance]:
    """At most so many training rows of a task, drawn without replacement by seed, purpose and the task's name.

    Args:
        task: With its training rows.
        count: How many to draw.
        seed: Of the run.
        purpose: Of the draw.

    Returns:
        The rows in the order of the data.
    """
    stream = random.Random(derive(seed, *purpose, task.name))
    places = stream.sample(range(len(task.train)), min(count, len(task.train)))
    return [task.train[at] for at in sorted(places)]


LOOKED_AT = 1000
"""Rows of a kind whose lengths stand for those of all, where nothing but a forecast depends on them."""


def even_rows(rows: Sequence[Instance], count: int) -> list[Instance]:
    """So many rows at even distances, again from the start where there are fewer."""
    return [rows[at * len(rows) // count if count <= len(rows) else at % len(rows)] for at in range(count)]


def first_rows(rows: Sequence[Instance], count: int, labels: Sequence[str] = ()) -> tuple[Instance, ...]:
    """At most `count` rows from the front, of each class block in equal parts."""
    blocks = class_blocks(rows, labels)
    parts = equal_parts(count, [len(block) for block in blocks])
    return tuple(row for block, part in zip(blocks, parts, strict=True) for row in block[:part])


def rows_of_each(rows: Sequence[Instance], count: int, labels: Sequence[str]) -> tuple[Instance, ...]:
    """At most `count` rows, the first of each class in equal parts wherever they stand; their order stays."""
    sizes = Counter(row.output for row in rows)
    left = Counter(dict(zip(labels, equal_parts(count, [sizes[name] for name in labels]), strict=True)))
    kept = []
    for row in rows:
        left[row.output] -= 1
        if left[row.output] >= 0:
            kept.append(row)
    return tuple(kept)


def last_rows(rows: Sequence[Instance], count: int, labels: Sequence[str] = ()) -> tuple[Instance, ...]:
    """At most `count` rows from the end, of each class block in equal parts, the last block first."""
    blocks = class_blocks(rows, labels)[::-1]
    parts = equal_parts(count, [len(block) for block in blocks])
    return tuple(row for block, part in zip(blocks, parts, strict=True) for row in block[len(block) - part :])


def class_blocks(rows: Sequence[Instance], labels: Sequence[str]) -> list[Sequence[Instance]]:
    """The blocks of equal outputs of a labelled task; one block where there are no labels or classes are mixed."""
    if not labels:
        return [rows]
    blocks = [list(block) for _, block in groupby(rows, key=lambda row: row.output)]
    return [*blocks] if len(blocks) == len({block[0].output for block in blocks}) else [rows]


def equal_parts(count: int, sizes: Sequence[int]) -> list[int]:
    """Splits `count` evenly over parts of limited size; the first parts take what is left over."""
    parts = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        open_parts = [at for at, size in enumerate(sizes) if parts[at] < size]
        share = max(1, left // len(open_parts))
        for at in open_parts[:left]:
            more = min(share, sizes[at] - parts[at])
            parts[at] += more
            left -= more
    return parts
