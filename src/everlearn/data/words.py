"""Rows of words with a tag each, as corpora of named entities have them, and how they are cut into tasks by type.

Tags are BIO: `O`, or `B-TYPE` on the first word of an entity and `I-TYPE` on its further ones. A task brings entity
types; its classes are `B-` and `I-` of each, and `O` stands before those of the stream's first task alone, so that a
head for each task, set side by side, has every tag once (the published order of columns: 0 is `O`, type k has 1 + 2k
and 2 + 2k).

    training rows   tags of a task's own types stay, all others are `O`: other types hide in the background, and what
                    is `O` changes from task to task ("background shift")
    test rows       of a task: the sentences that hold one of its types, tags as they are. After a stage the test set
                    is that of all tasks so far together, and types that nothing has trained yet do not count: the
                    published set, in which they are `O`

One corpus is shared out as published: a task may take floor(N * its types / all types) sentences. They are gone
through in the order of the file, and the rarest type in a sentence (by the mentions in all training rows) whose task
may still take one gets it; one without such goes to a task drawn among those that may, and is left out when none may.

Source: arXiv 2312.07887 and its code, zzz47zzz/codebase-for-incremental-learning-with-llm; the sampling is CFNER's.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from everlearn.data.account import listed
from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.errors import DataError, RecipeError

OUTSIDE = "O"
METRICS = ("macro_f1", "micro_f1")
"""Main metrics of such tasks (`everlearn.evaluation.entities`)."""


def fault_of(tags: Sequence[str]) -> str | None:
    """Why tags are no BIO, as the reason of a row that cannot be used; None where they are."""
    kind = ""
    for number, tag in enumerate(tags, 1):
        mark, _, found = tag.partition("-")
        if tag != OUTSIDE and (mark not in ("B", "I") or not found or tag.split() != [tag]):
            return f"tag {number} is {tag[:40]!r}, and BIO has 'O', 'B-TYPE' and 'I-TYPE'"
        if mark == "I" and found != kind:
            before = f"behind {tags[number - 2]!r}" if number > 1 else "at the beginning"
            return f"tag {number} is {tag!r} {before}, and in BIO an entity begins with 'B-{found}'"
        kind = found
    return None


def tags_of(row: Instance) -> list[str]:
    """The tags of a row of words."""
    return row.output.split(" ")


def type_of(tag: str) -> str:
    """The entity type of a tag; empty for `O`."""
    return tag.partition("-")[2]


def mentions(rows: Iterable[Instance]) -> Counter[str]:
    """How many entities of each type there are, in the order of first appearance."""
    return Counter(type_of(tag) for row in rows for tag in tags_of(row) if tag.startswith("B-"))


def types_in(classes: Iterable[str]) -> tuple[str, ...]:
    """The entity types of classes, in order."""
    return tuple(type_of(name) for name in classes if name.startswith("B-"))


def classes_of(types: Iterable[str]) -> tuple[str, ...]:
    """The tags of entity types, in the order of their columns in a head."""
    return tuple(f"{mark}-{name}" for name in types for mark in "BI")


def with_background(row: Instance, types: Collection[str]) -> Instance:
    """The row with the tags of these types; all others are `O`."""
    tags = (tag if type_of(tag) in types else OUTSIDE for tag in tags_of(row))
    return replace(row, output=" ".join(tags))


def holds(row: Instance, types: Collection[str]) -> bool:
    """Whether a row has an entity of one of these types."""
    return any(type_of(tag) in types for tag in tags_of(row))


def shared_out(rows: Sequence[Instance], groups: Sequence[Sequence[str]], seed: int) -> list[list[Instance]]:
    """The training rows of each task, as published (see above).

    Args:
        rows: All training rows.
        groups: The types of each task.
        seed: Of the draws.
    """
    known = mentions(rows)
    count = sum(map(len, groups))
    left = [math.floor(len(rows) * len(group) / count) for group in groups]
    task_of = {name: at for at, group in enumerate(groups) for name in group}
    stream, found = random.Random(seed), [list[Instance]() for _ in groups]
    for row in rows:
        rarest = sorted(mentions([row]), key=lambda name: known[name])
        at = next((task_of[name] for name in rarest if left[task_of[name]]), None)
        if at is None:
            able = [at for at, more in enumerate(left) if more]
            at = stream.choice(able) if able else None
        if at is not None:
            left[at] -= 1
            found[at].append(row)
    return found


def some_of_each(rows: Sequence[Instance], limit: int | None, types: Sequence[str]) -> tuple[Instance, ...]:
    """At most so many rows, by turns the next one of each type, in their order; None: all."""
    if not limit or limit >= len(rows):
        return tuple(rows)
    waiting = [[at for at, row in enumerate(rows) if holds(row, {name})] for name in types]
    waiting.append([at for at, row in enumerate(rows) if not holds(row, types)])
    chosen = dict.fromkeys(at for turn in range(len(rows)) for queue in waiting for at in queue[turn : turn + 1])
    return tuple(rows[at] for at in sorted(list(chosen)[:limit]))


def made_of(
    name: str,
    train: Sequence[Instance],
    evaluation: Sequence[Instance],
    types: Sequence[str],
    metric: str,
    limits: tuple[int | None, int | None],
) -> tuple[Task, tuple[int, int]]:
    """A task, and how many of its training and test rows the limits leave out.

    Args:
        name: Its name.
        train: Training rows, with whatever tags they have.
        evaluation: Test rows; those that hold none of the types are not its own.
        types: That it brings.
        metric: Main metric, or `auto`.
        limits: Most training rows, most test rows.

    Raises:
        RecipeError: the metric measures no entities.
        DataError: a type is not both trained and tested.
    """
    if metric != "auto" and metric not in METRICS:
        raise RecipeError(
            f"task {name}: metric {metric} scores an answer in words, and entities are measured by {METRICS[0]} or "
            f"{METRICS[1]}: set metric to one of them, or leave it out."
        )
    own = [with_background(row, types) for row in train]
    tested = [row for row in evaluation if holds(row, types)]
    kept = (some_of_each(own, limits[0], types), some_of_each(tested, limits[1], types))
    for part, rows in zip(("training", "test"), kept, strict=True):
        have = mentions(rows)
        if missing := [kind for kind in types if not have[kind]]:
            raise DataError(
                f"task {name}: its entity type {missing[0]!r} has no {part} rows: give it some, or take the type out "
                "(a limit that leaves a type out is too low)."
            )
    trained, asked = (tuple(replace(row, task=name) for row in part) for part in kept)
    task = Task(
        name,
        trained,
        asked,
        metric=METRICS[0] if metric == "auto" else metric,
        labels=tuple(types),
        classes=classes_of(types),
    )
    return task, (len(own) - len(kept[0]), len(tested) - len(kept[1]))


def is_of_words(tasks: Iterable[Task]) -> bool:
    """Whether the rows of tasks are words with tags."""
    return any(row.words for task in tasks for row in task.train[:1])


def with_outside(stream: TaskStream) -> TaskStream:
    """A stream of words with `O` as the first class of its first task; any other as it is.

    Raises:
        RecipeError: the stream's scenario is not class-incremental.
        DataError: some tasks have rows of words and others have not.
    """
    of_words = {task.name: bool(task.train and task.train[0].words) for task in stream}
    if not any(of_words.values()):
        return stream
    if not all(of_words.values()):
        names = [[name for name, is_one in of_words.items() if is_one == wanted] for wanted in (True, False)]
        raise DataError(
            f"rows of words with tags (task {names[0][0]}) and others ({listed(names[1])}) are in one stream, and no "
            "head reads both: give each kind a run of its own."
        )
    if stream.scenario != "class_incremental":
        raise RecipeError(
            "stream.scenario: rows of words with tags are answered by heads that do not know the task (no other "
            "protocol is published): set it to class_incremental."
        )
    tasks = [
        replace(task, classes=(*((OUTSIDE,) if at == 0 else ()), *classes_of(types_in(task.classes))))
        for at, task in enumerate(stream)
    ]
    return replace(stream, tasks=tuple(tasks))
