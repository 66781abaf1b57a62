"""Reading JSON of an expected form, so that a corrupt file becomes a sentence that names it.

The small converters raise `TypeError` or `ValueError`; `form_of` turns those into a `RunError` with the file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from everlearn.artifacts import RECORD, fault_in, read_record
from everlearn.errors import RunError
from everlearn.files import read_json, read_jsonl
from everlearn.report.facts.forms import misformed

Row = dict[str, object]
_DEPTH = 3  # of a file below its artifact
_MOST = 1e100
_T = TypeVar("_T")


@contextmanager
def form_of(path: Path) -> Iterator[None]:
    """Turns a surprise in a file's form into a sentence that names the file.

    Raises:
        RunError: the file does not have the form that everlearn writes.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise misformed(path, f"{type(error).__name__} {error}") from None


def optional(path: Path, parse: Callable[[Mapping[str, object]], _T]) -> _T | None:
    """The parsed JSON mapping of an artifact's file, or None where the file is absent."""
    if not stands(path):
        return None
    value = read_json(path)
    with form_of(path):
        return parse(assert_mapping(value))


def rows_of(path: Path) -> list[Row]:
    """All rows of a JSON Lines file; none where it is absent."""
    return list(read_jsonl(path)) if stands(path) else []


def stands(path: Path) -> bool:
    """Whether a file is there and, where it is an artifact's, as its record says.

    Raises:
        RunError: it is not, or the record names it and it is missing.
    """
    folder = next((parent for parent in list(path.parents)[:_DEPTH] if (parent / RECORD).exists()), None)
    if folder is None:
        return path.exists()
    record = read_record(folder)
    name = path.relative_to(folder).as_posix()
    if record is not None and name not in record.files and not path.exists():
        return False
    fault = fault_in(folder, name, record) if record else f"{folder / RECORD} is corrupt"
    if fault:
        raise RunError(
            f"{fault}: run 'everlearn doctor --cache' on its run folder, which removes what is corrupt, and then "
            "'everlearn resume', which makes it again."
        )
    return True


def assert_mapping(value: object) -> Mapping[str, object]:
    """The value itself, if it is a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError("expected an object")
    return value


def number(value: object) -> float | None:
    """A finite float, or None for null and not-a-number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, found {value!r}")
    found = float(value)
    if _MOST < abs(found) < float("inf"):
        raise ValueError(f"{value!r} is larger than anything that is measured")
    return found if abs(found) < float("inf") else None


def mapping(value: object) -> dict[str, object]:
    """The value as a mapping; empty for null."""
    return dict(assert_mapping(value)) if value is not None else {}


def items(value: object) -> list[object]:
    """The value itself, if it is a list."""
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value
