"""What methods found is shown by stage, under whatever names they gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from tests.report import run_folders
from tests.report.pages import Element, parse

STAGES = ("01-sentiment", "02-ruvian")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_folders.without_records(run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian"), rows=4))


def section(folder: Path) -> Element | None:
    tree = parse(page(read_study(folder)))
    return next((part for part in tree.all("section") if part.attributes.get("id") == "findings"), None)


def write(folder: Path, stage: str, **found: object) -> Path:
    path = folder / "stages" / stage / "findings" / "findings.json"
    path.parent.mkdir()
    path.write_text(json.dumps(found))
    return path


def test_a_method_that_finds_nothing_has_no_such_section(folder: Path) -> None:
    write(folder, STAGES[0], numbers={}, curves={}, tables={})
    assert section(folder) is None


def test_numbers_stand_by_stage_under_their_names(folder: Path) -> None:
    write(folder, STAGES[0], numbers={"<b>rows": 30})
    write(folder, STAGES[1], numbers={"task distance": 0.125, "<b>rows": None})
    part = section(folder)
    assert part is not None
    assert [head.text for head in part.one("thead").all("th")] == ["Stage", "<b>rows", "task distance"]
    rows = [[cell.text for cell in (*row.all("th"), *row.all("td"))] for row in part.one("tbody").all("tr")]
    assert rows == [[STAGES[0], "30", "–"], [STAGES[1], "–", "0.125"]]


def test_a_curve_has_a_line_for_each_stage_that_has_it(folder: Path) -> None:
    for stage in STAGES:
        write(folder, stage, curves={"a <i>course": {"x": "epoch", "points": [[1, 0.5], [2, None], [3, 4.0]]}})
    part = section(folder)
    assert part is not None
    (figure,) = part.all("figure")
    assert figure.one("figcaption").text == "a <i>course, by stage"
    assert figure.one("desc").text == "stage 01-sentiment ends at 4; stage 02-ruvian ends at 4"
    assert len([path for path in figure.all("path") if path.attributes.get("class", "").startswith("line ")]) == 2


def test_a_table_is_named_by_its_stage(folder: Path) -> None:
    write(folder, STAGES[1], tables={"groups": {"heads": ["task", "group"], "rows": [["<u>a", 2], ["b", None]]}})
    part = section(folder)
    assert part is not None
    assert part.one("h4").text == "groups, stage 02-ruvian"
    rows = [[cell.text for cell in (*row.all("th"), *row.all("td"))] for row in part.one("tbody").all("tr")]
    assert rows == [["<u>a", "2"], ["b", "–"]]


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ({"numbers": {"a": "much"}}, "numbers"),
        ({"curves": {"a": {"x": "step", "points": [[None, 1]]}}}, "no place"),
        ({"tables": {"a": {"heads": ["x", "y"], "rows": [["z"]]}}}, "as many cells"),
        ([], "FindingsForm"),
    ],
)
def test_another_form_is_refused_with_the_file(folder: Path, found: object, what: str) -> None:
    write(folder, STAGES[0]).write_text(json.dumps(found))
    with pytest.raises(RunError, match=rf"findings\.json is corrupt.*{what}"):
        page(read_study(folder))
