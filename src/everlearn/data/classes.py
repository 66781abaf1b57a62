"""The classes that tasks bring in class- and task-incremental learning: which they are, and that no two share one.

A task's classes are its labels in the order given, else its training answers in the order of their first appearance:
so the columns of a head stand in the order of the data, as in the published study (arXiv 2312.07887, whose label
lists are in the order of the files).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from everlearn.data.account import listed
from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.data.labels import folded
from everlearn.data.words import type_of
from everlearn.errors import DataError


def first_seen(rows: Iterable[Instance], ignore_case: bool) -> tuple[str, ...]:
    """The distinct answers in the order in which they appear first, each as most rows write it."""
    written: dict[str, Counter[str]] = {}
    for row in rows:
        written.setdefault(folded(row.output, ignore_case), Counter())[row.output] += 1
    return tuple(spellings.most_common(1)[0][0] for spellings in written.values())


def check_classes(task: Task) -> None:
    """Refuses a task whose classes are not all trained and tested, or whose tests ask for another one.

    Raises:
        DataError: names the task and the class.
    """
    trained, tested = (Counter(row.output for row in rows) for rows in (task.train, task.evaluation))
    for name in task.classes:
        for part, rows in (("training", trained), ("test", tested)):
            if not rows[name]:
                raise DataError(
                    f"task {task.name}: its class {name!r} has no {part} rows: give it some, or take the class out "
                    "(a limit that leaves a class out is too low)."
                )
    for part, rows in (("test", tested), ("training", trained)):
        outside = [name for name in rows if name not in task.classes]
        if outside:
            raise DataError(
                f"task {task.name}: {rows[outside[0]]} of its {part} rows are of {outside[0]!r}, which is none of the "
                f"task's classes ({listed(map(repr, task.classes))}), so no answer that it learns can be right: take "
                "these rows out, or give their class training rows."
            )


def check_scenario(stream: TaskStream) -> None:
    """Refuses a task that brings no classes, and a class that two tasks bring.

    Raises:
        DataError: names the tasks.
    """
    brought: dict[str, str] = {}
    for task in stream:
        if not task.classes:
            raise DataError(
                f"task {task.name} brings no classes (it is embedded), and with stream.scenario each task has classes "
                "of its own: take stream.scenario or the task out."
            )
        for name in task.classes:
            other = brought.setdefault(folded(name, ignore_case=True), task.name)
            if other != task.name:
                what = f"entity type {type_of(name)!r}" if task.train[0].words else f"class {name!r}"
                raise DataError(
                    f"{what} is in two tasks, {other} and {task.name}, and with stream.scenario each task "
                    "brings classes of its own: leave it to one of them, or rename one."
                )
