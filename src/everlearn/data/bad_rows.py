"""Rows that cannot be used: what is kept about them and how they are told to the user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from everlearn.errors import DataError

SHOWN = 5  # bad rows named in the message; the rest is counted


class RowFault(ValueError):
    """Why one row cannot be used; its text goes behind `line 12: `."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be used.

    Attributes:
        file: File or dataset it stands in.
        line: 1-based line of the file (JSON Lines, CSV), or number of the row (JSON lists, Parquet, datasets).
        reason: One clause, such as `no output`.
        row: The row as read, or its raw text where it could not be read.
        unit: What `line` counts: `line` or `row`.
    """

    file: str
    line: int
    reason: str
    row: object = None
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.reason}"

    def to_json(self) -> dict[str, object]:
        """A dictionary that any JSON writer takes, whatever the row held."""
        text = json.dumps(self.row, ensure_ascii=False, default=str)
        row = json.loads(text.encode("utf-8", "replace"))
        return {"file": self.file, "line": self.line, "reason": self.reason, "row": row}


def told(bad: Sequence[BadRow], total: int) -> str:
    """How many rows cannot be used, and the first few of them with the reasons.

    Args:
        bad: At least one row.
        total: Rows read in all, bad ones included.
    """
    shown, file = [], ""
    for row in bad[:SHOWN]:
        shown.append(str(row) if row.file == file else f"{row.file}, {row}")
        file = row.file
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"{len(bad)} of {total} rows cannot be used: {'; '.join(shown)}{more}."


def refusal(bad: Sequence[BadRow], total: int) -> DataError:
    """The error of a strict reader: `told`, and the remedy."""
    return DataError(
        f"{told(bad, total)} Mend them, or set stream.bad_rows to tolerant, which sets such rows aside in "
        "bad_rows.jsonl and goes on."
    )
