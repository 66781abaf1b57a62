"""What a method has found in a stage, for the reader of the report: numbers, curves and small tables by name.

Names are words of the field ("task distance", "regularisation strength"), as the report shows them. Values that are
no finite number are kept as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """A course: points (x, y) in order of x, and what x is."""

    points: Sequence[tuple[float, float | None]]
    x: str = "step"


@dataclass(frozen=True, slots=True)
class Table:
    """A small table: the heads of its columns, and rows of as many cells, the first of which names the row."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.heads) for row in self.rows), "a row has a cell for each column"


@dataclass(frozen=True, slots=True)
class Findings:
    """Of one stage, by name."""

    numbers: Mapping[str, float | None] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As it is stored."""
        return {
            "numbers": {name: _known(value) for name, value in self.numbers.items()},
            "curves": {
                name: {"x": curve.x, "points": [[x, _known(y)] for x, y in curve.points]}
                for name, curve in self.curves.items()
            },
            "tables": {
                name: {"heads": list(table.heads), "rows": [[_known(cell) for cell in row] for row in table.rows]}
                for name, table in self.tables.items()
            },
        }


def joined(parts: Mapping[str, Findings]) -> Findings:
    """The findings of several methods as one, each name behind its method's."""
    return Findings(
        {f"{method}: {name}": value for method, part in parts.items() for name, value in part.numbers.items()},
        {f"{method}: {name}": value for method, part in parts.items() for name, value in part.curves.items()},
        {f"{method}: {name}": value for method, part in parts.items() for name, value in part.tables.items()},
    )


def _known(value: Cell) -> Cell:
    return None if isinstance(value, float) and not math.isfinite(value) else value
