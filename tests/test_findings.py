"""What methods find is kept as plain JSON, with what is no number as unknown."""

from __future__ import annotations

import json
import math

import pytest

from everlearn.findings import Curve, Findings, Table, joined


def test_findings_are_stored_by_name_with_unknown_values_as_null() -> None:
    found = Findings(
        {"distance": 0.25, "share": math.nan},
        {"loss": Curve([(1, 2.0), (2, math.inf)], x="epoch")},
        {"groups": Table(("task", "group"), [("a", 1), ("b", None)])},
    )
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored == {
        "numbers": {"distance": 0.25, "share": None},
        "curves": {"loss": {"x": "epoch", "points": [[1, 2.0], [2, None]]}},
        "tables": {"groups": {"heads": ["task", "group"], "rows": [["a", 1], ["b", None]]}},
    }


def test_findings_of_a_stack_stand_behind_the_names_of_their_methods() -> None:
    one = Findings({"distance": 1.0}, {"course": Curve([(0, 1.0)])})
    whole = joined({"one": one, "other": Findings({"distance": 2.0}, tables={"t": Table(("x",), [])})})
    assert whole.numbers == {"one: distance": 1.0, "other: distance": 2.0}
    assert list(whole.curves) == ["one: course"]
    assert list(whole.tables) == ["other: t"]


def test_a_row_of_a_table_has_a_cell_for_each_column() -> None:
    with pytest.raises(AssertionError, match="a cell for each column"):
        Table(("a", "b"), [("only one",)])
