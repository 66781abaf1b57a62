"""Reading JSON of an expected form, so that a corrupt file becomes a sentence that names it.

The small converters raise `TypeError` or `ValueError`; `form_of` turns those into a `RunError` with the file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from everlearn.errors import RunError
from everlearn.files import read_json, read_jsonl

Row = dict[str, object]
_T = TypeVar("_T")


@contextmanager
def form_of(path: Path) -> Iterator[None]:
    """Turns a surprise in a file's form into a sentence that names the file.

    Raises:
        RunError: the file does not have the form that everlearn writes.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RunError(
            f"{path} is corrupt (it does not have the form that everlearn writes: {type(error).__name__} {error}): "
            "delete it and run 'everlearn resume'."
        ) from None


def optional(path: Path, parse: Callable[[Mapping[str, object]], _T]) -> _T | None:
    """The parsed JSON mapping of a file, or None where the file is absent."""
    if not path.exists():
        return None
    value = read_json(path)
    with form_of(path):
        return parse(assert_mapping(value))


def rows_of(path: Path) -> list[Row]:
    """All rows of a JSON Lines file; none where it is absent."""
    return list(read_jsonl(path)) if path.exists() else []


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
    return found if abs(found) < float("inf") else None


def mapping(value: object) -> dict[str, object]:
    """The value as a mapping; empty for null."""
    return dict(assert_mapping(value)) if value is not None else {}


def items(value: object) -> list[object]:
    """The value itself, if it is a list."""
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value


def mappings(value: object) -> list[dict[str, object]]:
    """The value, if it is a list of mappings; empty for null."""
    return [mapping(item) for item in items(value or [])]


def whole(value: object) -> int | None:
    """A whole number, or None for null."""
    found = number(value)
    return None if found is None else int(found)
