"""What influences noted while training is shown by stage, whatever they call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from tests.report import run_folders
from tests.report.pages import Element, parse

SECOND = "stages/02-ruvian/training/history.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_folders.without_records(run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian"), rows=4))


def section(folder: Path) -> Element | None:
    tree = parse(page(read_study(folder)))
    return next((part for part in tree.all("section") if part.attributes.get("id") == "acting"), None)


def write(folder: Path, *rows: dict[str, object]) -> None:
    (folder / SECOND).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_plain_training_has_no_such_section(folder: Path) -> None:
    assert section(folder) is None


def test_what_was_noted_stands_beside_the_loss_with_its_mean_and_its_end(folder: Path) -> None:
    steps = [
        {"step": at, "loss": 2.0 if at < 20 else 1.0, "learning_rate": 1e-3, "seconds": 1.0, "penalty": 1e-7 * at}
        for at in range(1, 21)
    ]
    steps[3]["taken_back"] = 0.25
    write(folder, *steps)
    part = section(folder)
    assert part is not None
    assert [head.text for head in part.one("thead").all("th")] == ["Stage", "Loss", "penalty", "taken back"]
    first, second = part.one("tbody").all("tr")
    assert [cell.text for cell in first.all("td")][1:] == ["–", "–"]
    assert [cell.text.replace("\u202f", " ") for cell in second.all("td")] == [
        "1.95at the end 1.5",
        "1.05 × 10⁻⁶at the end 1.95 × 10⁻⁶",
        "0.25at the end 0.25",
    ]


def test_a_name_that_is_markup_is_text(folder: Path) -> None:
    write(folder, {"step": 1, "loss": 1.0, "<script>x": 2.0})
    part = section(folder)
    assert part is not None
    assert "<script>x" in part.one("thead").text


def test_a_value_that_is_no_number_is_refused_with_the_file(folder: Path) -> None:
    write(folder, {"step": 1, "loss": 1.0, "penalty": "much"})
    with pytest.raises(RunError, match=r"history\.jsonl is corrupt"):
        page(read_study(folder))
