"""The recipe in a run folder: written so that the folder can be moved, read again, and held against another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from everlearn import recipe_file
from everlearn.files import write_text
from everlearn.recipe import read_stored
from everlearn.recipe_paths import found_path, located, portable

RecipeKind = TypeVar("RecipeKind", bound=BaseModel)


def write_kept(folder: Path, recipe: BaseModel, apart: Collection[str]) -> None:
    """Writes `recipe.yaml`, unless it stands there as it would be written.

    Args:
        folder: The run folder.
        recipe: To be kept; its paths become relative to the folder.
        apart: Keys that do not belong to the run.

    Raises:
        RunError: it cannot be written.
    """
    path, text = folder / "recipe.yaml", recipe_file.dump(kept(portable(recipe, folder), apart))
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def read_kept(
    folder: Path,
    make: Callable[[dict[str, Any]], RecipeKind],
    known: Mapping[str, Any],
    remedy: str,
    **keys: object,
) -> RecipeKind:
    """The recipe that stands in a run folder, its paths absolute.

    Args:
        folder: The run folder, which may have been moved.
        make: Checks the keys.
        known: The file beside it that knows where the folder and its cache stood.
        remedy: For a file that cannot be read.
        keys: In place of those in the file.

    Raises:
        RunError: the file cannot be read.
    """
    written_in, cache = known.get("folder"), known.get("cache_dir")
    places = {
        "runs_dir": str(folder.parent),
        "cache_dir": found_path(str(cache), folder, written_in) if cache else None,
    }
    recipe = make({**read_stored(folder / "recipe.yaml", remedy), **places, **keys})
    return located(recipe, folder, written_in)


def as_kept(recipe: RecipeKind, folder: Path) -> RecipeKind:
    """A recipe as it would be read again from a run folder."""
    return located(portable(recipe, folder), folder)


def differing_keys(theirs: BaseModel, mine: BaseModel, apart: Collection[str]) -> dict[str, tuple[object, object]]:
    """Dotted keys in which two recipes differ, with both values."""
    return _differences(kept(theirs, apart), kept(mine, apart))


def kept(recipe: BaseModel, apart: Collection[str]) -> dict[str, Any]:
    """What of a recipe belongs to its run."""
    return recipe.model_dump(mode="json", exclude=set(apart))


def _differences(theirs: object, mine: object, at: str = "") -> dict[str, tuple[object, object]]:
    if not (isinstance(theirs, Mapping) and isinstance(mine, Mapping)):
        return {} if theirs == mine else {at or "its form": (theirs, mine)}
    found: dict[str, tuple[object, object]] = {}
    for key in {**theirs, **mine}:
        found |= _differences(theirs.get(key), mine.get(key), f"{at}.{key}" if at else str(key))
    return found
