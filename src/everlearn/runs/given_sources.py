"""Tasks from data files that are given without a recipe: one a file, of a folder those of `everlearn init`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from everlearn.checking import checked
from everlearn.data.source_names import is_saved_dataset
from everlearn.errors import DataError
from everlearn.ordinary_files import is_folder, is_regular
from everlearn.recipe import TaskConfig
from everlearn.runs.recipe_writer import columns_of, task_name, tasks_in


def tasks_of(sources: Iterable[str]) -> tuple[list[TaskConfig], dict[str, str]]:
    """The tasks that some files, folders or datasets hold.

    Args:
        sources: As under `train` of a task.

    Returns:
        The tasks, no two of one name, and the files of folders that belong to none with the reason.

    Raises:
        DataError: a folder holds no data file.
    """
    tasks: list[TaskConfig] = []
    left_out: dict[str, str] = {}
    for source in sources:
        path = Path(os.path.expanduser(source))
        if is_folder(path) and not is_saved_dataset(path):
            found, others = tasks_in(path, Path.cwd())
            left_out |= others
        else:
            entry = {"name": task_name(_stem(path.name)), "train": source, "columns": _columns(path)}
            found = [checked(TaskConfig, entry, where=repr(source))]
        for task in found:
            taken = {other.name.lower() for other in tasks}
            names = (task.name if number == 1 else f"{task.name}-{number}" for number in range(1, len(tasks) + 2))
            tasks.append(task.model_copy(update={"name": next(name for name in names if name.lower() not in taken)}))
    return tasks, left_out


def _stem(name: str) -> str:
    stem = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    return stem.rpartition(".")[0] or stem


def _columns(path: Path) -> dict[str, str | list[str]]:
    try:
        return columns_of(path)[0] if is_regular(path) else {}
    except DataError:
        return {}  # reading the task says why
