"""What the name of a source stands for: a file, a folder of files, a saved dataset, or one of the Hugging Face hub.

Task data and raw text are named alike, and what cannot be found is refused in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from everlearn.data.containers import data_suffix
from everlearn.errors import DataError, nearest
from everlearn.ordinary_files import inside, is_folder, is_regular, shown

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.+-]+)?(@[\w.%:\[\]+-]+)?")
_SAVED_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
_SHOWN_CHARACTERS = 300


def files_in(folder: Path, suffixes: Collection[str], what: str) -> list[Path]:
    """What a folder holds under a name with one of these suffixes, sorted by name; its sub-folders are not looked at.

    A pipe, a folder or a broken link of such a name is among them, to be refused rather than passed over.

    Args:
        folder: To look into.
        suffixes: In small letters, with their dot; each may be followed by `.gz`.
        what: What such files hold, for the message.

    Raises:
        DataError: there is none.
    """
    files = [path for path in inside(folder) if not path.name.startswith(".") and data_suffix(path.name) in suffixes]
    if not files:
        raise DataError(
            f"folder {folder} holds no {what} file ({', '.join(suffixes)}, or one of them with .gz): "
            "name another folder, or the files themselves."
        )
    return files


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the datasets library."""
    return is_folder(path) and any(is_regular(path / mark) for mark in _SAVED_MARKS)


def looks_like_a_path(source: str, suffixes: Collection[str]) -> bool:
    """Whether a source that is not there cannot or will not be meant as the name of a dataset on the hub."""
    if _HUB_NAME.fullmatch(source) is None or source.endswith(".gz") or data_suffix(source) in suffixes:
        return True
    return "/" in source and is_folder(Path(source).parent)


def hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of `name[:config][@split]`; the split is `train` where none is named."""
    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    return name, config or None, split or "train"


def missing(path: Path) -> DataError:
    """The refusal of a path at which nothing is, with the nearest name."""
    if not is_folder(path.parent):
        return DataError(
            f"no file or folder {shown(path)} (there is no folder {shown(path.parent)} either): mend the path in the "
            "recipe."
        )
    guess = nearest(path.name, [inner.name for inner in inside(path.parent)])
    hint = f"did you mean {path.parent / guess}?" if guess else "mend the path in the recipe."
    return DataError(f"no file or folder {shown(path)}: {hint}")


def unreachable(source: str, error: Exception) -> DataError:
    """The refusal of what may be a dataset of the hub but cannot be loaded from it."""
    return DataError(
        f"{source!r} is no file or folder here, and as a dataset of the Hugging Face hub it cannot be loaded "
        f"({one_line(error)}): mend the path, or write name[:config][@split] and see that the hub can be reached."
    )


def one_line(error: Exception) -> str:
    """Kind and beginning of a library's error."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN_CHARACTERS]
