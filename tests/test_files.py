"""Files with a sum of their own: what they hold, and how it stands there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.files import read_vouched, write_vouched

VALUE = {"stages": [{"name": "01-a", "tasks": ["a"]}], "é": {"x": [1.5, None], 3: {}}, "none": [], "n": float("inf")}


def test_an_object_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_vouched(tmp_path / "a.json", VALUE)
    assert read_vouched(tmp_path / "a.json") == json.loads(json.dumps(VALUE))


def test_entries_of_the_outer_levels_have_a_line_each(tmp_path: Path) -> None:
    write_vouched(tmp_path / "a.json", VALUE)
    *lines, last, end = (tmp_path / "a.json").read_text(encoding="utf-8").splitlines()
    assert lines == [
        "{",
        '  "stages": [',
        '    {"name": "01-a", "tasks": ["a"]}',
        "  ],",
        '  "é": {',
        '    "x": [1.5, null],',
        '    "3": {}',
        "  },",
        '  "none": [],',
        '  "n": Infinity,',
    ]
    assert last.startswith('  "sum": "')
    assert end == "}"


def test_an_object_indented_as_it_was_before_is_read_and_a_change_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_vouched(path, VALUE)
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(whole, indent=2), encoding="utf-8")
    assert read_vouched(path)["none"] == []
    path.write_text(json.dumps({**whole, "none": [1]}), encoding="utf-8")
    with pytest.raises(RunError, match="its sum differs"):
        read_vouched(path)
