"""Where rows come from: a file, a folder of files, a dataset saved to disk, or a dataset of the Hugging Face hub.

A source is written as in a recipe: a path, or `name[:config][@split]` for the hub. `@split` also picks a split of a
saved folder. Nothing is ever run from a dataset: `trust_remote_code` is not passed on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.containers import DATA_SUFFIXES, RawRows, read_container
from everlearn.data.source_names import (
    files_in,
    hub_parts,
    is_saved_dataset,
    looks_like_a_path,
    missing,
    one_line,
    unreachable,
)
from everlearn.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


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
    if is_saved_dataset(path):
        return [_saved_dataset(path, split)]
    if path.is_dir():
        return [_file(inner) for inner in data_files(path)]
    if path.exists():
        return [_file(path)]
    if looks_like_a_path(source, DATA_SUFFIXES):
        raise missing(path)
    return [_hub_dataset(source)]


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder (not of its sub-folders), sorted by name.

    Raises:
        DataError: there is none.
    """
    return files_in(folder, DATA_SUFFIXES, "data")


def _file(path: Path) -> RawRows:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): make it a file you may read.") from None
    return read_container(data, str(path))


def _saved_dataset(folder: Path, split: str | None) -> RawRows:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of many kinds for a damaged folder
        raise DataError(f"{folder} is not a dataset that can be loaded ({one_line(error)}): save it again.") from None
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

    name, config, split = hub_parts(source)
    try:
        loaded = load_dataset(name, config, split=split)
    except Exception as error:  # network, hub and library errors have no common class
        raise unreachable(source, error) from None
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
