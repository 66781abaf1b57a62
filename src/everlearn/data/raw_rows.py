"""The rows of one source, not yet understood."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from everlearn.data.bad_rows import BadRow


@dataclass(frozen=True, slots=True)
class RawRows:
    """The rows of one source, not yet understood.

    Attributes:
        file: Name for messages.
        rows: (line or row number, value); a value is whatever the row held, not always an object. Lines are read one
            after the other, once, so that what is kept of them stands together in memory.
        bad: Rows that could not even be read: complete when the rows are read.
        unit: What the numbers count, `line` or `row`.
        document: The object that holds the rows, where the file is one JSON object (SuperNI task files).
        notes: Sentences on what was decided while reading.
    """

    file: str
    rows: Iterable[tuple[int, object]]
    bad: list[BadRow] = field(default_factory=list)
    unit: str = "row"
    document: dict[str, object] | None = None
    notes: list[str] = field(default_factory=list)

    def looked_at(self, count: int) -> tuple[list[tuple[int, object]], RawRows]:
        """The first rows, and all of them still to be read."""
        rows = iter(self.rows)
        first = list(islice(rows, count))
        return first, replace(self, rows=chain(first, rows))
