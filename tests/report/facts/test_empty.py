"""Empty answers are counted in the report, and measures that rest on them say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from everlearn.report.facts.empty import doubt, empty_answers
from everlearn.report.facts.study import Study, read_study
from everlearn.report.html import page
from everlearn.report.text import matrix_table
from tests.report import run_folders

TASKS = ("sentiment", "ruvian", "routing")
NONE = [0, 0, 0]


def study(folder: Path, base: list[int], *empty: list[int], label: str = "ssr") -> Study:
    """A run of three tasks with twenty evaluation rows each, of which so many answers were empty."""
    run_folders.make_run(folder, label=label, tasks=TASKS, rows=20)
    path = folder / "matrix.json"
    matrix = json.loads(path.read_text()) | {"answers": [20, 20, 20], "base_empty": base, "empty": [*empty]}
    run_folders.write_json(path, matrix)
    metrics = json.loads((folder / "metrics.json").read_text())
    if label == "ssr":
        metrics["FWT_over_base"] = {"value": 1.0, "low": 0.0, "high": 2.0}
    run_folders.write_json(folder / "metrics.json", metrics)
    return read_study(folder)


@pytest.mark.parametrize(
    ("base", "empty", "measures"),
    [
        (NONE, [[0, 0, 0]] * 3, None),
        (NONE, [[2, 2, 2]] * 3, None),  # a tenth is no more than a few
        (NONE, [[3, 0, 0], NONE, NONE], "BWT and forgetting"),
        (NONE, [NONE, [20, 0, 0], NONE], "forgetting"),
        (NONE, [NONE, NONE, [0, 3, 0]], "BWT and forgetting"),
        (NONE, [[0, 20, 0], NONE, NONE], "FWT and FWT over base"),
        ([0, 20, 0], [NONE, NONE, NONE], "FWT over base"),
        ([20, 0, 0], [NONE, NONE, [0, 0, 20]], None),  # no measure of change is computed from these
        (NONE, [[7, 16, 0], NONE, NONE], "BWT, forgetting, FWT and FWT over base"),
    ],
)
def test_the_measures_that_use_a_cell_of_empty_answers_are_named(
    tmp_path: Path, base: list[int], empty: list[list[int]], measures: str | None
) -> None:
    found = study(tmp_path / "run", base, *empty)
    told = doubt(found.methods[0], found)
    assert (told.partition(" of SSR rest")[0] if told else None) == measures


def test_counts_stand_with_stage_and_task(tmp_path: Path) -> None:
    found = study(tmp_path / "run", [1, 0, 0], [7, 16, 0], NONE, NONE)
    assert empty_answers(found.methods[0], found) == (
        "Empty answers: base model: sentiment 1 of 20; after 01-sentiment: sentiment 7 of 20, ruvian 16 of 20."
    )
    console = Console(width=500, record=True)
    console.print(matrix_table(tmp_path / "run"))
    told = doubt(found.methods[0], found)
    assert told is not None
    assert "(after 01-sentiment: sentiment 7 of 20, ruvian 16 of 20)" in told
    for shown in (console.export_text(), page(found)):
        assert "after 01-sentiment: sentiment 7 of 20, ruvian 16 of 20." in shown
        assert told in shown


def test_a_run_without_empty_answers_or_counts_says_nothing_of_them(tmp_path: Path, single: Path) -> None:
    for found in (study(tmp_path / "run", NONE, NONE, NONE, NONE), read_study(single)):
        assert empty_answers(found.methods[0], found) is None
        assert "mpty answers" not in page(found)


def test_a_bound_that_learns_all_at_once_has_no_measure_of_change(tmp_path: Path) -> None:
    found = study(tmp_path / "run", NONE, [20, 20, 20], label="multitask")
    assert empty_answers(found.methods[0], found) is not None
    assert doubt(found.methods[0], found) is None
