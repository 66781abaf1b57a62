"""What methods cost is told by name, for each stage of a run and for each method of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from tests.report import run_folders
from tests.report.pages import Element, parse

TASKS = ("sentiment", "ruvian", "routing")


def section(folder: Path) -> Element | None:
    tree = parse(page(read_study(folder)))
    return next((part for part in tree.all("section") if part.attributes.get("id") == "cost"), None)


def rows(folder: Path) -> list[list[str]]:
    found = section(folder)
    assert found is not None
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in found.all("tr")]


def test_a_run_tells_the_cost_of_each_stage(tmp_path: Path) -> None:
    head, *stages = rows(run_folders.make_run(tmp_path / "run", tasks=TASKS, rows=4))
    assert head == [
        "Stage", "Training", "of it acting", "Steps of its own", "Generated tokens", "Disk", "Peak memory",
    ]  # fmt: skip
    assert [row[0] for row in stages] == ["01-sentiment", "02-ruvian", "03-routing"]
    assert stages[0][2] == "–"
    assert stages[1][2].startswith("0.2")
    assert "ssr" in stages[1][2]
    assert "synthesis" in stages[0][3]
    assert stages[0][4] == "1\u202f000"
    assert stages[2][3:5] == ["–", "–"]  # nothing is synthesized after the last stage
    assert stages[0][6] == "1.3\u202fGB"


def test_a_comparison_has_a_row_for_each_method_with_means_over_seeds(tmp_path: Path) -> None:
    folder = run_folders.make_comparison(tmp_path / "compared", rows=4)
    _, *methods = rows(folder)
    titles = [method.title for method in read_study(folder).methods]
    assert [row[0] for row in methods] == titles
    by_title = dict(zip(titles, methods, strict=True))
    assert "synthesis" in by_title["SSR"][3]
    assert by_title["SSR"][4] == "4\u202f000"
    assert by_title["sequential"][3:5] == ["–", "–"]


def test_runs_of_the_first_releases_have_no_such_section_or_an_emptier_one(tmp_path: Path) -> None:
    folder = run_folders.make_run(tmp_path / "run", tasks=TASKS, rows=4)
    manifest = json.loads((folder / "manifest.json").read_text())
    for step in manifest["steps"].values():
        del step["generated_tokens"], step["peak_memory_bytes"]
    run_folders.write_json(folder / "manifest.json", manifest)
    _, first, *_ = rows(folder)
    assert first[4:] == ["–", first[5], "–"]
    for step in manifest["steps"].values():
        step["files"] = {}
    run_folders.write_json(folder / "manifest.json", manifest)
    assert section(folder) is None


def test_counts_that_everlearn_cannot_have_written_are_refused(tmp_path: Path) -> None:
    folder = run_folders.make_run(tmp_path / "run", tasks=TASKS, rows=4)
    manifest = json.loads((folder / "manifest.json").read_text())
    next(iter(manifest["steps"].values()))["generated_tokens"] = -1
    run_folders.write_json(folder / "manifest.json", manifest)
    with pytest.raises(RunError, match=r"manifest.json is corrupt .*generated_tokens"):
        read_study(folder)


def test_what_was_planned_stands_beside_what_was_spent(tmp_path: Path) -> None:
    folder = run_folders.make_run(tmp_path / "run", tasks=TASKS, rows=4)
    assert "Planned and spent" not in page(read_study(folder))  # a run of an earlier release
    manifest = json.loads((folder / "manifest.json").read_text())
    stages = ["00-base", *(stage["name"] for stage in manifest["stages"])]
    manifest["plan"] = {
        "parts": [
            {
                "stage": name,
                "kind": "training",
                "steps": 10 * at,
                "trained_tokens": 1000 * at,
                "most_written_tokens": 70,
            }
            for at, name in enumerate(stages)
        ]
    }
    run_folders.write_json(folder / "manifest.json", manifest)
    spent = json.loads((folder / "stages" / stages[1] / "training" / "summary.json").read_text())
    table = rows(folder)[-5:]
    assert table[0][1:3] == ["Steps planned", "spent"]
    assert table[1][:5] == ["00-base", "–", "–", "–", "–"]
    told = [f"{number:,}".replace(",", "\u202f") for number in (10, spent["steps"], 1000, spent["tokens"], 70, 1000)]
    assert table[2] == ["01-sentiment", *told]
    assert table[4][:2] == ["03-routing", "30"]
