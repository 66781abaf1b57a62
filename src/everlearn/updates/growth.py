"""A run of version updates that grows: its recipe with one more version."""

from __future__ import annotations

from pathlib import Path

from everlearn.checking import checked
from everlearn.errors import RecipeError, RunError
from everlearn.recipe_paths import anchor
from everlearn.updates.config import EmbeddedVersions, UpdateRecipe
from everlearn.updates.folder import recipe_of


def longer(folder: Path, data: str, name: str | None = None, column: str | None = None) -> UpdateRecipe:
    """The recipe of a run with one more version.

    Args:
        folder: The run folder.
        data: As a version's `data`; `embedded` for the next version of the generated corpus.
        name: Of the version; nothing: v1, v2, ...
        column: Key of the text in structured data.

    Raises:
        UserError: the run is not of this kind, or the text cannot be used.
    """
    recipe = recipe_of(folder)
    versions: object
    if isinstance(recipe.versions, EmbeddedVersions):
        if data != "embedded":
            raise RecipeError(
                f"{folder} has versions of the generated corpus: add the next one with --add-version embedded, or "
                "start a run with your own text."
            )
        versions = {**recipe.versions.model_dump(), "count": recipe.versions.count + 1}
    else:
        added = f"v{len(recipe.versions) + 1}" if name is None else name
        if any(version.id == added for version in recipe.versions):
            raise RecipeError(f"{folder} has a version {added!r} already: choose another --version-id.")
        source = anchor(Path.cwd(), data)
        versions = [*recipe.versions, {"id": added, "data": source, **({} if column is None else {"column": column})}]
    found = checked(UpdateRecipe, {**recipe.model_dump(), "versions": versions}, where="--add-version")
    if found.path.points:
        raise RunError(
            f"{folder} has scheduled branches: add the version and its branch point to {folder / 'recipe.yaml'}, then "
            f"run 'everlearn update {folder}'."
        )
    return found
