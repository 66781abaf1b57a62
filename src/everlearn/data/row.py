"""One row of a data file, which remembers what was looked at: whatever nobody looks at is told, not lost.

Texts are taken verbatim; numbers, truth values and dates count as texts.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator, Mapping

from everlearn.data.bad_rows import RowFault

_PLAIN = (int, float, decimal.Decimal, uuid.UUID)
_TIMES = (datetime.date, datetime.time)


class Row(Mapping[str, object]):
    """A row, or an object within one, by its keys.

    Attributes:
        remarks: What was decided about it, as the end of a sentence on several rows (`end with a question ...`).
    """

    __slots__ = ("_inner", "_read", "_values", "remarks")

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self._read: set[str] = set()
        self._inner: list[tuple[str, Row]] = []
        self.remarks: set[str] = set()

    def __getitem__(self, key: str) -> object:
        self._read.add(key)
        return self._values[key]

    def get(self, key: str, default: object = None) -> object:
        """The value under a key, which counts as read."""
        self._read.add(key)
        return self._values.get(key, default)

    def first(self, *keys: str) -> object:
        """The first value that is there; the keys behind it stay unread."""
        return next((self.get(key) for key in keys if self._values.get(key) is not None), None)

    def peek(self, key: str) -> object:
        """The value under a key, which does not count as read."""
        return self._values.get(key)

    def holds(self, key: str) -> bool:
        """Whether there is something under a key, which does not count as reading it."""
        return key in self._values and holds_something(self._values[key])

    def inside(self, value: object, path: str, what: str) -> Row:
        """An object within the row; what is not read of it belongs to the row.

        Raises:
            RowFault: it is no object.
        """
        if not isinstance(value, dict):
            raise RowFault(f"{what} is {kind_of(value)}, not an object")
        row = Row(value)
        self._inner.append((path, row))
        return row

    def renamed(self, values: Mapping[str, object]) -> Row:
        """A row of values that were read from this one; what is decided about it belongs to this one."""
        row = Row(values)
        row.remarks, row._inner = self.remarks, self._inner
        return row

    def unread(self) -> set[str]:
        """The keys that hold something and were not looked at; within objects as `messages[].weight`."""
        keys = {key for key, value in self._values.items() if key not in self._read and holds_something(value)}
        for path, row in self._inner:
            keys |= {f"{path}.{key}" for key in row.unread()}
        return keys

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def holds_something(value: object) -> bool:
    """Whether a value is more than null, blank, a table's NaN, or lists and objects of these."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null")  # lists written as text, as LLaMA-Factory's `tools`
    if isinstance(value, dict):
        return any(map(holds_something, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_something, value))
    return value is not None and value == value


def text_of(row: Row, key: str) -> str:
    """The text under a key; empty when the key is missing or null.

    Raises:
        RowFault: the value is neither text nor a number nor a date.
    """
    return as_text(row.get(key), key)


def as_text(value: object, what: str) -> str:
    """A value as text; raises as `text_of`."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise RowFault(f"{what!r} holds half a surrogate pair, which is no text") from None
        return value
    if value is None or (isinstance(value, float) and value != value):  # null, or a table's NaN
        return ""
    if isinstance(value, _TIMES):
        return value.isoformat()
    if value in (float("inf"), float("-inf")):  # JSON has no such number: it was `Infinity`, or one like 1e999
        raise RowFault(f"{what!r} is a number too large to be read: put it in quotes")
    if isinstance(value, _PLAIN):
        return str(value)
    raise RowFault(f"{what!r} is {kind_of(value)}, not text")


def kind_of(value: object) -> str:
    """What a value is, in words."""
    kinds = {"list": "a list", "dict": "an object", "Row": "an object", "bytes": "binary data", "timedelta": "a span"}
    name = type(value).__name__
    return kinds.get(name, f"of type {name}")
