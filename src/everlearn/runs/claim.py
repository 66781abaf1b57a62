"""Whose a run folder is: the recipe that it was made with, and what another one may add to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import RunError
from everlearn.files import read_vouched
from everlearn.kept_recipe import as_kept, differing_keys, read_kept, write_kept
from everlearn.ordinary_files import stat_of
from everlearn.recipe import NOT_OF_A_RUN, GenerationConfig, Recipe, make_recipe
from everlearn.runs.growth import GROWING, grows, refuse_other_rows, refuse_other_stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everlearn.data.instance import Task, TaskStream
    from everlearn.methods.base import Method
    from everlearn.store import RunStore

_APART = (*NOT_OF_A_RUN, "cache_dir")
_MEASURED_APART = ("evaluation.judge", "evaluation.general_tasks", "evaluation.general_stages",
                   "evaluation.general_include_path", "evaluation.general_chat_template")  # fmt: skip
"""Benchmarks and a judge may be asked of a run that has begun, or is done, and a judge's server may move."""
_FINDING_AN_ENGINE = {
    f"generation.{key}" for key in GenerationConfig.model_fields if key not in ("engine", "context_length")
}
"""Keys on which nothing that is written depends: a run goes on with another server of the same kind."""


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a run folder was made with.

    Raises:
        RunError: the folder is no run folder.
    """
    path, manifest = folder / "recipe.yaml", folder / "manifest.json"
    if not path.exists():
        raise RunError(f"{folder} is no run folder (it has no recipe.yaml): give the folder of a run.")
    known = read_vouched(manifest) if manifest.exists() else {}
    remedy = "delete this file and give the run's recipe to 'everlearn run' again"
    return read_kept(folder, partial(make_recipe, where=str(path)), known, remedy)


def claim(folder: Path, recipe: Recipe) -> None:
    """Writes the recipe into a new run folder, or checks that the folder belongs to the same one.

    Raises:
        RunError: the folder was made by another recipe; names the keys that differ.
    """
    refuse_foreign(folder, recipe)
    if not (folder / "recipe.yaml").exists() or not _has_begun(folder) or _is_measured_otherwise(folder, recipe):
        write_kept(folder, recipe, _APART)


def _is_measured_otherwise(folder: Path, recipe: Recipe) -> bool:
    keys = differing_keys(recipe_of(folder), as_kept(recipe, folder), _APART)
    return bool(keys) and all(key.startswith(_MEASURED_APART) for key in keys)


def take(store: RunStore, recipe: Recipe, method: Method, stream: TaskStream, read: Sequence[Task]) -> None:
    """Makes the folder that of a recipe which may have more tasks than the one that it was made with.

    Args:
        store: Of the run.
        recipe: To be run.
        method: Its method.
        stream: The tasks as they are trained on.
        read: The tasks before any row was left out for its length.

    Raises:
        RunError: the recipe differs otherwise, or more than the new stages would be trained.
    """
    folder = store.folder
    claim(folder, recipe)
    refuse_other_stages(folder, store.manifest, method, stream)
    if grows(recipe_of(folder).stream, recipe.stream):
        refuse_other_rows(folder, read)
        write_kept(folder, recipe, _APART)
        for name in ("matrix.json", "metrics.json", "probing.json"):  # they have no column for the new task
            (folder / name).unlink(missing_ok=True)


def refuse_foreign(folder: Path, recipe: Recipe) -> None:
    """Refuses a run folder that another recipe has made, but for tasks that are added at the end.

    Raises:
        RunError: names the keys that differ.
    """
    if stat_of(folder / "recipe.yaml", RunError) is None:
        return
    made_with, mine = recipe_of(folder), as_kept(recipe, folder)
    found = differing_keys(made_with, mine, _APART)  # newer keys take their defaults
    differing = {key for key in found if not key.startswith(_MEASURED_APART)} - _FINDING_AN_ENGINE
    if "auto" in (made_with.model.lora.targets, recipe.model.lora.targets):
        differing.discard("model.lora.targets")  # known when the model has been looked at; steps go by what it means
    if grows(made_with.stream, mine.stream):
        differing -= GROWING
    if differing and _has_begun(folder):
        added = "" if differing.isdisjoint(GROWING) else " (tasks can only be added, at the end)"
        raise RunError(
            f"{folder} holds a run of another recipe (it differs in {', '.join(sorted(differing))}){added}: choose "
            "another --name, or delete the folder to start afresh; cached artifacts are reused either way."
        )


def _has_begun(folder: Path) -> bool:
    """Whether more than the recipe is there: a command that was stopped while it read binds nobody."""
    return (folder / "manifest.json").exists() or (folder / "stages").exists()
