"""Adds a task to a run or comparison, months later and maybe on another machine: only the new stage is trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from everlearn.checking import checked
from everlearn.errors import DataError, RecipeError, RunError
from everlearn.progress import Progress
from everlearn.recipe import TaskConfig
from everlearn.recipe_paths import anchored
from everlearn.run_folder import COMPARISON, RUN, UPDATE, UPDATE_COMPARISON, kind_of
from everlearn.runs.claim import recipe_of
from everlearn.runs.compare import compare, planned
from everlearn.runs.growth import longer
from everlearn.runs.loop import RunResult, execute
from everlearn.runs.recipe_writer import columns_of, task_name


def add_task(folder: Path, task: Mapping[str, object], progress: Progress) -> dict[str, list[RunResult]] | RunResult:
    """Adds a task at the end of the stream of a run, or of every run of a comparison, and goes on with it.

    A run that was stopped goes on first. A kill leaves the task with the run: `everlearn resume` goes on.

    Args:
        folder: Of the run or comparison.
        task: As under `stream.tasks` of a recipe; without a name the task is called like its training file, and
            without format or columns these are guessed as for a new recipe.
        progress: Where to show what goes on.

    Raises:
        UserError: the folder is none of these, the task cannot be read or has the name of another one, or the method
            cannot go on with it.
    """
    kind = kind_of(folder)
    if kind in (UPDATE, UPDATE_COMPARISON):
        raise RunError(
            f"{folder} holds version updates, which have no tasks: add a version to a run of them with 'everlearn "
            "update RUN --add-version DATA'."
        )
    if kind == RUN and kind_of(folder.absolute().parent) == COMPARISON:
        raise RunError(
            f"{folder} is one run of the comparison {folder.absolute().parent}: add the task to that, which adds it "
            "to every run."
        )
    source = task.get("train")
    if not source:
        raise RecipeError("a task needs training rows: give --train FILE.")
    path = Path(str(source)).expanduser()
    given = {"name": task_name(path.name.partition(".")[0]), **task}
    if not task.keys() & {"format", "columns"}:
        with suppress(DataError):  # what cannot be read is refused with the rest of the recipe
            given["columns"] = columns_of(path)[0] if path.is_file() else {}
    entry = anchored(checked(TaskConfig, given, where="the task to add"), None)
    plan = planned(folder)
    if plan is None:
        return execute(longer(recipe_of(folder), entry, folder), folder=folder, progress=progress)
    recipe, methods, seeds = plan
    return compare(longer(recipe, entry, folder), methods, seeds, progress=progress)
