"""The rows of one source, not yet understood."""

from __future__ import annotations

from dataclasses import dataclass, field

from everlearn.data.bad_rows import BadRow


@dataclass(frozen=True, slots=True)
class RawRows:
    """The rows of one source, not yet understood.

    Attributes:
        file: Name for messages.
        rows: (line or row number, value); a value is whatever the row held, not always an object.
        bad: Rows that could not even be read.
        unit: What the numbers count, `line` or `row`.
        document: The object that holds the rows, where the file is one JSON object (SuperNI task files).
        notes: Sentences on what was decided while reading.
    """

    file: str
    rows: list[tuple[int, object]]
    bad: list[BadRow] = field(default_factory=list)
    unit: str = "row"
    document: dict[str, object] | None = None
    notes: list[str] = field(default_factory=list)
