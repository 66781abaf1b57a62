"""Where rows come from: a file, a folder of files, a dataset saved to disk, or a dataset of the Hugging Face hub.

A source is written as in a recipe: a path, or `name[:config][@split]` for the hub. `@split` also picks a split of a
saved folder, and a direction of one with parallel files (`flores.py`).
Nothing is ever run from a dataset: `trust_remote_code` is not passed on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.containers import DATA_SUFFIXES, read_container
from everlearn.data.flores import flores_files, read_flores
from everlearn.data.parquet import with_class_names
from everlearn.data.raw_rows import RawRows
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
from everlearn.ordinary_files import is_folder, read_bytes, stat_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset


def read_source(source: str) -> list[RawRows]:
    """Reads all rows of a source, one `RawRows` per file.

    Args:
        source: Path of a file or folder, or `name[:config][@split]`.

    Raises:
        DataError: nothing is there (with the nearest file name), or it cannot be read.
    """
    path = Path(os.path.expanduser(source))
    split = None
    is_there = stat_of(path) is not None or path.is_symlink()
    if not is_there and "@" in source and is_folder(source.rpartition("@")[0]):
        path, split = Path(source.rpartition("@")[0]), source.rpartition("@")[2]
    if is_saved_dataset(path):
        return [_saved_dataset(path, split)]
    if is_folder(path) and flores_files(path):
        return [read_flores(path, split)]
    if is_folder(path):
        return [_file(inner) for inner in data_files(path)]
    if is_there:
        return [_file(path)]
    if looks_like_a_path(source, DATA_SUFFIXES):
        raise missing(path)
    return [_rows_of(hub_dataset(source), source)]


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder (not of its sub-folders), sorted by name.

    Raises:
        DataError: there is none.
    """
    return files_in(folder, DATA_SUFFIXES, "data")


def _file(path: Path) -> RawRows:
    return read_container(read_bytes(path), str(path))


def _saved_dataset(folder: Path, split: str | None) -> RawRows:
    from datasets import DatasetDict

    saved = saved_dataset(folder)
    if isinstance(saved, DatasetDict):
        wanted = split or "train"
        if wanted not in saved:
            raise DataError(_no_split(str(folder), wanted, saved))
        return _rows_of(saved[wanted], f"{folder}@{wanted}")
    if split is not None:
        raise DataError(f"{folder} is one dataset without splits: leave out '@{split}'.")
    return _rows_of(saved, str(folder))


def saved_dataset(folder: Path) -> Dataset | DatasetDict:
    """What `save_to_disk` of the datasets library has written.

    Raises:
        DataError: it cannot be loaded.
    """
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of many kinds for a damaged folder
        raise DataError(f"{folder} is not a dataset that can be loaded ({one_line(error)}): save it again.") from None


def hub_dataset(source: str, **options: object) -> Dataset | IterableDataset:
    """A dataset of the Hugging Face hub.

    Args:
        source: `name[:config][@split]`.
        options: Of the library's `load_dataset`.

    Raises:
        DataError: it cannot be reached, or there is none.
    """
    from datasets import load_dataset

    name, config, split = hub_parts(source)
    try:
        return load_dataset(name, config, split=split, **options)
    except Exception as error:  # network, hub and library errors have no common class
        raise unreachable(source, error) from None


def _no_split(source: str, wanted: str, splits: Iterable[str]) -> str:
    return f"{source} has no split {wanted!r}: write {source}@SPLIT with one of {', '.join(splits)}."


def _rows_of(dataset: Dataset, name: str) -> RawRows:
    """The rows of a dataset; class numbers become the names of their classes."""
    rows = dataset.with_format("arrow")[:].to_pylist()  # images and sounds stay undecoded
    return with_class_names(rows, dataset.features.to_dict(), name)
