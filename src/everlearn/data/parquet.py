"""Parquet files and datasets saved to disk: rows with the names of their classes.

The Hugging Face libraries store a class as a number; its name stands with the columns' types, which they write into
the metadata of a Parquet file too. The number -1 means "not labelled".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from everlearn.data.bad_rows import BadRow, RowFault
from everlearn.data.raw_rows import RawRows
from everlearn.errors import DataError
from everlearn.ordinary_files import MOST_BYTES, size

if TYPE_CHECKING:
    import pyarrow

_MOST_ROWS = 20_000_000  # chosen here: as many rows of two short texts fill 10 GB of memory
_AT_ONCE = 1024


def read_parquet(data: bytes, file: str) -> RawRows:
    """Reads the rows of a Parquet file.

    Raises:
        DataError: it is damaged, names a column twice, or would not fit into memory.
    """
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, object]] = []
    held = 0
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        _check_size(file, table.metadata.num_rows, 0)
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{file}: the columns {', '.join(names)} name one twice: rename one.")
        for batch in table.iter_batches(batch_size=_AT_ONCE):
            held += batch.nbytes
            _check_size(file, len(rows), held)
            rows += batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} is a damaged Parquet file ({reason}): fetch or make it again.") from None
    return with_class_names(rows, _features(table.schema_arrow), file)


def with_class_names(rows: Iterable[dict[str, object]], features: Mapping[str, Any], name: str) -> RawRows:
    """Rows whose class numbers become the names of their classes, in lists and objects too.

    Args:
        rows: Of the dataset.
        features: Types of the columns as `datasets.Features.to_dict` gives them.
        name: Of the file or dataset, for messages.
    """
    classes = {key: feature for key, feature in features.items() if "ClassLabel" in json.dumps(feature)}
    read: list[tuple[int, object]] = []
    raw = RawRows(name, read)
    for number, row in enumerate(rows, 1):
        try:
            named = {key: _named(row.get(key), feature) for key, feature in classes.items()}
        except RowFault as fault:
            raw.bad.append(BadRow(name, number, str(fault), row, raw.unit))
        else:
            read.append((number, {**row, **named}))
    return raw


def _features(schema: pyarrow.Schema) -> dict[str, Any]:
    """Types of the columns as the Hugging Face libraries wrote them into a file's metadata; empty without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _named(value: Any, feature: Any) -> object:
    """A value with the names of its classes; None where it is not labelled."""
    if value is None:
        return None
    if isinstance(feature, list):
        return [_named(item, feature[0]) for item in value]
    kind = feature.get("_type") if isinstance(feature, dict) else ""
    if kind == "ClassLabel":
        return _class_name(value, feature.get("names"))
    if isinstance(kind, str) and "feature" in feature:
        inner = feature["feature"]
        if isinstance(value, dict):  # a sequence of objects is stored as an object of lists
            return {key: [_named(item, inner.get(key, {})) for item in items] for key, items in value.items()}
        return [_named(item, inner) for item in value]
    if isinstance(value, dict):
        return {key: _named(item, feature.get(key, {})) for key, item in value.items()}
    return value


def _class_name(number: Any, names: Any) -> object:
    if not isinstance(number, int) or not isinstance(names, list):
        return number
    if number >= len(names):
        raise RowFault(f"the class number {number}, where there are {len(names)} classes")
    return names[number] if number >= 0 else None


def _check_size(file: str, rows: int, held: int) -> None:
    if rows > _MOST_ROWS or held > MOST_BYTES:
        raise DataError(
            f"{file} holds more than {_MOST_ROWS:,} rows or more than {size(MOST_BYTES)}: split it into several files "
            "and use a part of them."
        )
