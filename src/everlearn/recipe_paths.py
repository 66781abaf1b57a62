"""The paths in a recipe: what they are relative to, and how a run folder keeps them.

A path in a recipe's file is relative to the file, one of the command line or of Python to the working directory. In a
run folder they are kept relative to that folder, so that a project which is moved as a whole keeps its runs; where the
run folder alone was moved, they are looked for from where it was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, get_args

from pydantic import AfterValidator, BaseModel

from everlearn.errors import RecipeError
from everlearn.ordinary_files import is_folder, stat_of

SectionKind = TypeVar("SectionKind", bound=BaseModel)


def _fit_for_a_path(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty: name a file or folder, or leave the key out")
    if re.search("[\0\ud800-\udfff]", text):
        raise ValueError("no file can be called so: it holds a zero byte or bytes that are no UTF-8")
    return text


class _Read:
    """Marks the keys of paths that are read."""


@dataclass(frozen=True)
class Word:
    """Marks a value that is no path."""

    text: str


Folder = Annotated[str, AfterValidator(_fit_for_a_path)]
"""A path that is written to, relative to the working directory."""
Source = Annotated[str, AfterValidator(_fit_for_a_path), _Read()]
"""A path that is read, or a name on the hub."""


def anchor(base: Path, text: str) -> str:
    """A path relative to `base` made absolute where something stands there; a name of the hub stays as it is.

    Raises:
        RecipeError: the system cannot look there.
    """
    given = Path(text).expanduser() if text.startswith("~") else Path(text)
    if given.is_absolute():
        return str(given) if text.startswith("~") else text
    return str(base / given) if _stands(base / given) else text


def _stands(place: Path) -> bool:
    """Whether a file, a folder, or the folder of a split is there."""
    folder, at, _ = str(place).rpartition("@")
    return stat_of(place, RecipeError) is not None or (at != "" and is_folder(folder, RecipeError))


def with_paths(section: SectionKind, change: Callable[[str, str], str], at: str = "") -> SectionKind:
    """The section with every path that it reads changed; of a method's options those that hold a slash.

    Args:
        section: A recipe or a part of one.
        change: From the dotted key and the path to the new path.
        at: Dotted key of the section.
    """
    changes: dict[str, object] = {}
    for name, field in type(section).model_fields.items():
        value, called = getattr(section, name), field.alias or name
        key = f"{at}.{called}" if at else called
        marks = [*field.metadata, *_marks(field.annotation)]
        if isinstance(value, BaseModel):
            changes[name] = with_paths(value, change, key)
        elif isinstance(value, list | tuple) and any(isinstance(part, BaseModel) for part in value):
            changes[name] = type(value)(with_paths(part, change, f"{key}.{n}") for n, part in enumerate(value))
        elif isinstance(value, str) and any(isinstance(mark, _Read) for mark in marks) and Word(value) not in marks:
            changes[name] = change(key, value)
    for name, value in (section.model_extra or {}).items():
        if isinstance(value, dict):
            changes[name] = {key: _option(change, f"{at}.{name}.{key}", of_it) for key, of_it in value.items()}
        else:
            changes[name] = _option(change, f"{at}.{name}", value)
    return section.model_copy(update=changes)


def _option(change: Callable[[str, str], str], key: str, value: object) -> object:
    return change(key, value) if isinstance(value, str) and "/" in value else value


def _marks(annotation: object) -> list[object]:
    """What is written beside the types of an annotation."""
    return [mark for part in get_args(annotation) for mark in (part, *_marks(part))]


def anchored(recipe: SectionKind, base: Path | None, overridden: Collection[str] = ()) -> SectionKind:
    """The recipe with its local paths made absolute, so that a run does not depend on the working directory.

    Args:
        recipe: As it was given.
        base: Folder of its file; None where there is none. What is not there is looked for in the working directory.
        overridden: Keys that the command line set; their paths are relative to the working directory only.

    Raises:
        RecipeError: the data of a key is the folder of the recipe itself.
    """
    here = Path.cwd()

    def place(key: str, text: str) -> str:
        is_own = base is None or any(key == other or key.startswith(f"{other}.") for other in overridden)
        found = anchor(here, text) if is_own or base is None else anchor(base, text)
        if found == text and not is_own:
            found = anchor(here, text)
        is_data = not key.startswith("model.") and not key.endswith(".checkpoint")
        if base is not None and is_data and is_folder(found, RecipeError) and Path(found).resolve() == base:
            raise RecipeError(
                f"{key}: {text!r} is the folder of the recipe itself, of which every data file would be read: name "
                "one file, or move the data into a folder of its own."
            )
        return found

    return with_paths(recipe, place)


def portable(recipe: SectionKind, folder: Path) -> SectionKind:
    """The recipe as a run folder keeps it: absolute paths made relative to the folder, beginning with a dot."""
    return with_paths(recipe, lambda _, text: kept_path(text, folder))


def located(recipe: SectionKind, folder: Path, written_in: object = None) -> SectionKind:
    """The recipe that a run folder keeps, its paths absolute again.

    Args:
        recipe: As `portable` made it.
        folder: Of the run, where it stands now.
        written_in: Where it stood when it was made, if that is known.
    """
    return with_paths(recipe, lambda _, text: found_path(text, folder, written_in))


def kept_path(text: str, folder: Path) -> str:
    """An absolute path relative to a folder; others as they are."""
    if not os.path.isabs(text) or os.path.realpath(text) != os.path.realpath(os.path.normpath(text)):
        return text  # in the second case a link stands before a `..`
    short = os.path.relpath(text, folder.absolute())
    return short if short.startswith("..") else f"./{short}"


def found_path(text: str, folder: Path, written_in: object = None) -> str:
    """A path that a folder keeps, absolute: as it is now, or where that is not there, as it was when it was kept."""
    if not text.startswith(("./", "../")) and text not in (".", ".."):
        return text
    places = [Path(os.path.normpath(place / text)) for place in (folder.absolute(), Path(str(written_in or folder)))]
    return str(next((place for place in places if _stands(place)), places[0]))
