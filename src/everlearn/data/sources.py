"""Where rows come from: a file, a folder of files, a dataset saved to disk, or a dataset of the Hugging Face hub.

A source is written as in a recipe: a path, or `name[:config][@split]` for the hub. `@split` also picks a split of a
saved folder. Nothing is ever run from a dataset: `trust_remote_code` is not passed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.containers import DATA_SUFFIXES, RawRows, data_suffix, read_container
from everlearn.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.+-]+)?(@[\w.%:\[\]+-]+)?")
_SAVED_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")


def read_source(source: str) -> list[RawRows]:
    """Reads all rows of a source, one `RawRows` per file.

    Args:
        source: Path of a file or folder, or `name[:config][@split]`.

    Raises:
        DataError: nothing is there (with the nearest file name), or it cannot be read.
    """
    path = Path(source).expanduser()
    split = None
    if not path.exists() and "@" in source and Path(source.rpartition("@")[0]).is_dir():
        path, split = Path(source.rpartition("@")[0]), source.rpartition("@")[2]
    if path.is_dir():
        if any((path / mark).is_file() for mark in _SAVED_MARKS):
            return [_saved_dataset(path, split)]
        return [_file(inner) for inner in data_files(path)]
    if path.exists():
        return [_file(path)]
    if _looks_like_a_path(source):
        raise DataError(_missing(path))
    return [_hub_dataset(source)]


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder (not of its sub-folders), sorted by name.

    Raises:
        DataError: there is none.
    """
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and data_suffix(path.name) in DATA_SUFFIXES
    ]
    if not files:
        raise DataError(
            f"folder {folder} holds no data file ({', '.join(DATA_SUFFIXES)}, or one of them with .gz): "
            "name another folder, or the files themselves."
        )
    return files


def _file(path: Path) -> RawRows:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): make it a file you may read.") from None
    return read_container(data, str(path))


def _looks_like_a_path(source: str) -> bool:
    """Whether a source that is not there cannot or will not be meant as the name of a dataset on the hub."""
    if _HUB_NAME.fullmatch(source) is None or source.endswith(".gz") or data_suffix(source) in DATA_SUFFIXES:
        return True
    return "/" in source and Path(source).parent.is_dir()


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no file or folder {path} (there is no folder {path.parent} either): mend the path in the recipe."
    guess = nearest(path.name, [inner.name for inner in path.parent.iterdir()])
    hint = f"did you mean {path.parent / guess}?" if guess else "mend the path in the recipe."
    return f"no file or folder {path}: {hint}"


def _saved_dataset(folder: Path, split: str | None) -> RawRows:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of many kinds for a damaged folder
        raise DataError(f"{folder} is not a dataset that can be loaded ({_one_line(error)}): save it again.") from None
    if isinstance(saved, DatasetDict):
        wanted = split or "train"
        if wanted not in saved:
            raise DataError(_no_split(str(folder), wanted, saved))
        return _rows_of(saved[wanted], f"{folder}@{wanted}")
    if split is not None:
        raise DataError(f"{folder} is one dataset without splits: leave out '@{split}'.")
    return _rows_of(saved, str(folder))


def _hub_dataset(source: str) -> RawRows:
    from datasets import load_dataset

    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    try:
        loaded = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # network, hub and library errors have no common class
        raise DataError(
            f"{source!r} is no file or folder here, and as a dataset of the Hugging Face hub it cannot be loaded "
            f"({_one_line(error)}): mend the path, or write name[:config][@split] and see that the hub can be reached."
        ) from None
    return _rows_of(loaded, source)


def _no_split(source: str, wanted: str, splits: Iterable[str]) -> str:
    return f"{source} has no split {wanted!r}: write {source}@SPLIT with one of {', '.join(splits)}."


def _rows_of(dataset: Dataset, name: str) -> RawRows:
    """The rows of a dataset; class numbers become the names of their classes."""
    from datasets import ClassLabel

    names = {key: kind.names for key, kind in dataset.features.items() if isinstance(kind, ClassLabel)}
    rows = dataset.with_format("arrow")[:].to_pylist()  # images and sounds stay undecoded
    for row in rows:
        for key, classes in names.items():
            if isinstance(row[key], int) and 0 <= row[key] < len(classes):
                row[key] = classes[row[key]]
    return RawRows(name, list(enumerate(rows, 1)))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
