"""The folder of a run of version updates: its recipe, its manifest, and who may work in it.

    runs/<name>/
      recipe.yaml, plan.json, ledger.json, quality.json, report.html, run.log
      manifest.json              versions of the parts, machine, data versions, status of each segment
      tokenizer/                 the tokenizer of all versions
      heldout/<version>.npy      held-out blocks, kept here so that quality can be measured when the text is gone
      segments/<id>/history.jsonl {"step","loss","learning_rate","seconds"}; checkpoint/ while it runs
      states/<id>/               whole training states that a later segment starts from
      releases/<version>/        plain Transformers folders

Kept states, the stated policy: of a running segment its newest checkpoint; of finished segments those states that a
segment still to come may start from (the main path's newest branch point or end), also when another version follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from everlearn.checking import checked
from everlearn.errors import RunError
from everlearn.files import read_vouched, remove_unfinished, write_vouched
from everlearn.kept_recipe import as_kept, differing_keys, read_kept, write_kept
from everlearn.run_folder import UPDATE, UPDATE_COMPARISON, kind_of
from everlearn.updates.config import UpdateRecipe

_REMEDY = "delete this file and give the recipe to 'everlearn update' again"
_MACHINE = ("device", "micro_batch_blocks", "checkpoint_every", "sharding", "gradient_checkpointing")
_OF_THE_MACHINE = frozenset(f"training.{key}" for key in _MACHINE)
NOT_OF_A_RUN = ("compare", "seeds", "runs_dir", "cache_dir")
"""Keys that a run folder does not keep."""


class UpdateFolder:
    """A run folder and its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}
        if (path / "manifest.json").exists():
            stored = read_vouched(path / "manifest.json")
            if stored.get("kind") != UPDATE:
                raise RunError(
                    f"{path} holds a run of tasks: go on with it by 'everlearn resume', or choose another --name."
                )
            self.manifest = stored

    def update(self, **values: object) -> None:
        """Sets top-level entries of the manifest and writes it."""
        self.manifest.update(values)
        write_vouched(self.path / "manifest.json", self.manifest)

    def segment(self, name: str) -> dict[str, Any]:
        """The manifest's entry of a segment; empty before it has begun."""
        return dict(self.manifest.get("segments", {}).get(name, {}))

    def update_segment(self, name: str, **values: object) -> None:
        """Changes a segment's entry and writes the manifest."""
        segments = self.manifest.setdefault("segments", {})
        segments[name] = {**segments.get(name, {}), **values}
        write_vouched(self.path / "manifest.json", self.manifest)

    def is_complete(self, name: str) -> bool:
        """Whether a segment has been trained to its end."""
        return self.segment(name).get("status") == "complete"

    def history(self, name: str) -> Path:
        """The log of a segment."""
        return self.path / "segments" / name / "history.jsonl"

    def checkpoint(self, name: str) -> Path:
        """The newest state of a segment that runs."""
        return self.path / "segments" / name / "checkpoint"

    def state(self, name: str) -> Path:
        """The state at the end of a segment, while one may start from it."""
        return self.path / "states" / name

    def release(self, version: str) -> Path:
        """The released model of a version."""
        return self.path / "releases" / version

    def heldout(self, version: str) -> Path:
        """Held-out blocks of a version."""
        return self.path / "heldout" / f"{version}.npy"

    def remove_partial(self) -> None:
        """Deletes what a killed process had begun to write; call it with the folder locked."""
        remove_unfinished(self.path)


def is_update(folder: Path) -> bool:
    """Whether the folder holds a run or a comparison of version updates."""
    return kind_of(folder) in (UPDATE, UPDATE_COMPARISON)


def is_comparison(folder: Path) -> bool:
    """Whether the folder holds a comparison of version updates."""
    return (folder / "comparison.json").exists()


def recipe_of(folder: Path) -> UpdateRecipe:
    """The recipe that a run folder was made with.

    Raises:
        RunError: it is no run folder of version updates.
    """
    path = folder / "recipe.yaml"
    stored = UpdateFolder(folder).manifest
    if not path.exists() or not is_update(folder):
        raise RunError(f"{folder} is no run folder of version updates: give a recipe, or the folder of a run.")
    return _stored_recipe(folder, stored, {})


def comparison_of(folder: Path, seeds: object = None) -> UpdateRecipe:
    """The recipe that a comparison was begun with.

    Args:
        folder: Of the comparison.
        seeds: In place of those it was begun with, as the command line gives them.

    Raises:
        RunError: the folder's files are corrupt.
        RecipeError: the seeds are none.
    """
    begun = read_vouched(folder / "comparison.json")
    return _stored_recipe(folder, begun, {"seeds": begun.get("seeds", []) if seeds is None else seeds})


def _stored_recipe(folder: Path, known: Mapping[str, Any], keys: Mapping[str, object]) -> UpdateRecipe:
    """The recipe in a folder, with what the folder's other file knows and some keys beside it."""
    make = partial(checked, UpdateRecipe, where=str(folder / "recipe.yaml"))
    return read_kept(folder, make, known, _REMEDY, **{"name": folder.name, **keys})


def claim(folder: Path, recipe: UpdateRecipe) -> None:
    """Writes the recipe into the folder, or checks that it goes on with the recipe that stands there.

    A recipe goes on with another if it only adds versions (with their branch points) at the end, or changes keys that
    belong to the machine.

    Raises:
        RunError: it differs otherwise; names the keys.
    """
    has_begun = (folder / "manifest.json").exists()  # a command that was stopped while it read binds nobody
    if (folder / "recipe.yaml").exists() and has_begun:
        found = differing_keys(recipe_of(folder), as_kept(recipe, folder), NOT_OF_A_RUN)
        differing = sorted(key for key, (one, two) in found.items() if not _may_differ(key, one, two))
        if differing:
            raise RunError(
                f"{folder} was made with another recipe ({', '.join(differing)} differ): choose another --name, or "
                "take back the changes."
            )
    write_kept(folder, recipe, NOT_OF_A_RUN)


def now() -> str:
    """The time of day, as the manifest writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _may_differ(key: str, old: object, new: object) -> bool:
    """Whether a key is one of the machine's, or a list or number of versions that only grew at its end."""
    if key in ("versions", "path.points"):
        return isinstance(old, list) and isinstance(new, list) and new[: len(old)] == old
    if key == "versions.count":
        return isinstance(old, int) and isinstance(new, int) and new >= old
    return key in _OF_THE_MACHINE
