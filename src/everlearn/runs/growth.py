"""A stream that grows: tasks that are added at the end of what a run has learnt, and what such a run may not change.

The stages that stand are found by their fingerprints and only the new one is trained. What the stage that was last
had not needed (its rehearsal rows, its method's state) is made then: whether a stage is the last is an input of those
steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from everlearn.data.instance import Task, TaskStream
from everlearn.data.kept import kept_fingerprint
from everlearn.errors import RecipeError, RunError
from everlearn.methods.base import Method
from everlearn.recipe import EMBEDDED, Recipe, StreamConfig, TaskConfig

GROWING = frozenset({"stream.tasks", "stream.order"})
"""Keys that may differ from those of the recipe that a run was made with, where they only add tasks at the end."""


def grows(old: StreamConfig, new: StreamConfig) -> bool:
    """Whether a stream is another one with tasks added at its end."""
    before, after = _arriving(old), _arriving(new)
    return len(after) > len(before) > 0 and after[: len(before)] == before


def longer(recipe: Recipe, task: TaskConfig, whose: Path) -> Recipe:
    """The recipe with a task added at the end of its stream.

    Raises:
        RecipeError: it has a task of that name, or its tasks are cut from a data set.
    """
    if recipe.stream.from_:
        raise RecipeError(
            f"{whose} has tasks that are cut from one data set (stream.from), to which none can be added: "
            "further ones of the same data are named in stream.order; for others list all tasks under stream.tasks."
        )
    tasks = _in_order(recipe.stream)
    listed = list(recipe.stream.tasks) if isinstance(recipe.stream.tasks, list) else tasks
    if any(other.name.lower() == task.name.lower() for other in listed):
        raise RecipeError(
            f"{whose} has a task {task.name!r} already (capitals do not count): choose another --name for the new one."
        )
    order = [*recipe.stream.order, task.name] if recipe.stream.order and listed is not tasks else None
    stream = recipe.stream.model_copy(update={"tasks": [*listed, task], "order": order})
    return recipe.model_copy(update={"stream": stream})


def refuse_other_stages(folder: Path, manifest: Mapping[str, object], method: Method, stream: TaskStream) -> None:
    """Refuses a stream whose first stages are not those that the run has had.

    Raises:
        RunError: the method makes other stages of a longer stream.
    """
    known = manifest.get("stages")
    stages = [(stage.name, [task.name for task in stage.tasks]) for stage in method.stages(stream)]
    before = [(stage["name"], list(stage["tasks"])) for stage in known] if isinstance(known, list) else []
    if stages[: len(before)] != before:
        raise RunError(
            f"{folder}: with another task the method {method.name} would train other stages than it has trained "
            f"({', '.join(name for name, _ in before)}), so nothing could be gone on with: give the longer stream to "
            "'everlearn run' or 'everlearn compare' under another --name; what stays the same is found in the cache."
        )


def refuse_other_rows(folder: Path, tasks: Iterable[Task]) -> None:
    """Refuses to add a task to a run whose other tasks have other rows by now: it would be trained anew.

    Raises:
        RunError: names the first such task.
    """
    for task in tasks:
        if kept_fingerprint(folder, task.name) not in (None, task.fingerprint()):
            raise RunError(
                f"{folder}: the rows of task {task.name} are not those that the run was trained on, so its stages "
                "would be trained again: put the old data back, or move the new data away (the run then goes on with "
                "the rows that it has kept), or choose another --name."
            )


def _arriving(stream: StreamConfig) -> Sequence[object]:
    """The tasks, or their names where they are cut from a data set; none where the data alone tells how many."""
    return stream.order or () if stream.from_ else _in_order(stream)


def _in_order(stream: StreamConfig) -> list[TaskConfig]:
    """The tasks in order of arrival."""
    tasks = stream.tasks
    if isinstance(tasks, str):
        from everlearn.data.embedded.stream import TASKS

        tasks = [TaskConfig(name=task.name, train=EMBEDDED) for task in TASKS]
    known = {task.name: task for task in tasks}
    return [known[name] for name in stream.order if name in known] if stream.order else tasks
