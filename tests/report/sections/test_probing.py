"""Observed beside probed accuracy: the figure, the sentence and the terminal's table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from everlearn.files import read_mapping
from everlearn.report.facts.probed import courses, verdict
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.text import print_tables
from tests.report import run_folders
from tests.report.pages import Element, parse

TASKS = ("sentiment", "ruvian")
STAGES = ["01-sentiment", "02-ruvian"]
PROBES = {
    "linear": {"base": [10.0, 20.0], "values": [[90.0, 30.0], [80.0, 90.0]]},
    "prototype": {"base": [0.0, 0.0], "values": [[50.0, 10.0], [40.0, 60.0]]},
}


def probed(folder: Path, gap: tuple[float, float, float], slope: float | None) -> Path:
    run_folders.without_records(run_folders.make_run(folder, tasks=TASKS, rows=4))
    run_folders.write_json(folder / "probing.json", {"tasks": list(TASKS), "stages": STAGES, "probes": PROBES})
    metrics = read_mapping(folder / "metrics.json")
    metrics["AR"] = {"value": 30.0, "low": None, "high": None}
    metrics["probe_gap"] = dict(zip(("value", "low", "high"), gap, strict=True))
    if slope is not None:
        metrics["probe_slope"] = {"value": slope, "low": slope - 1, "high": slope + 1}
    run_folders.write_json(folder / "metrics.json", metrics)
    return folder


def section(folder: Path) -> Element | None:
    tree = parse(page(read_study(folder)))
    return next((part for part in tree.all("section") if part.attributes.get("id") == "probing"), None)


def test_a_run_that_probed_nothing_has_no_such_section(tmp_path: Path) -> None:
    folder = run_folders.make_run(tmp_path / "run", tasks=TASKS, rows=4)
    assert section(folder) is None
    out = io.StringIO()
    print_tables(folder, Console(file=out, width=100))
    assert "probe" not in out.getvalue()


def test_means_are_over_the_tasks_learnt_by_then_or_over_all(tmp_path: Path) -> None:
    study = read_study(probed(tmp_path / "run", (55.0, 50.0, 60.0), 10.0))
    (method,) = study.methods
    matrix = read_mapping(tmp_path / "run" / "matrix.json")
    seen, of_all = (courses(method, study, seen=seen) for seen in (True, False))
    assert list(seen) == ["observed", "linear", "prototype"]
    assert seen["linear"] == [(1, 90.0), (2, 85.0)]
    assert of_all["linear"] == [(0, 15.0), (1, 60.0), (2, 85.0)]
    assert seen["observed"] == [(1, matrix["values"][0][0]), (2, sum(matrix["values"][1]) / 2)]
    assert of_all["observed"][0] == (0, sum(matrix["base"]) / 2)


def test_both_figures_have_a_line_with_marks_and_a_label_for_each(tmp_path: Path) -> None:
    part = section(probed(tmp_path / "run", (55.0, 50.0, 60.0), 10.0))
    assert part is not None
    figures = part.all("figure")
    assert [figure.one("strong").text for figure in figures] == ["Mean of tasks seen so far", "Mean of all tasks"]
    for figure, points in zip(figures, (2, 3), strict=True):
        labels = [label.text for label in figure.all("text") if "label" in label.classes]
        assert sorted(labels) == ["linear probe", "observed", "prototype"]
        lines = [path for path in figure.all("path") if "line" in path.classes]
        assert len({(path.attributes["class"], path.attributes.get("stroke-dasharray")) for path in lines}) == 3
        assert (
            len([mark for mark in (*figure.all("path"), *figure.all("circle")) if "mark" in mark.classes])
            == 3 * points
        )
    assert "linear probe base: 15.0, 1: 60.0, 2: 85.0" in figures[1].one("desc").text


@pytest.mark.parametrize(
    ("gap", "slope", "words"),
    [
        (
            (55.0, 50.0, 60.0),
            -8.0,
            ["gets 85.0 % right, the model itself 30.0 %", "forgets as well: it loses 8.0"],
        ),
        ((55.0, 50.0, 60.0), 0.2, ["its answers no longer tell apart (55.0 points)", "loses nothing", "+0.2 points"]),
        ((55.0, 50.0, 60.0), 7.0, ["forgets nothing: it gains 7.0 points a stage"]),
        ((2.0, -3.0, 6.0), None, ["its answers tell apart what the backbone separates."]),
    ],
)
def test_the_sentence_says_where_forgetting_sits(
    tmp_path: Path, gap: tuple[float, float, float], slope: float | None, words: list[str]
) -> None:
    folder = probed(tmp_path / "run", gap, slope)
    (method,) = read_study(folder).methods
    said = verdict(method).replace("\u202f", " ")
    assert all(word in said for word in words), said
    part = section(folder)
    assert part is not None
    assert verdict(method) in part.text


def test_heads_are_called_heads(tmp_path: Path) -> None:
    folder = probed(tmp_path / "run", (55.0, 50.0, 60.0), 0.0)
    manifest = read_mapping(folder / "manifest.json")
    manifest["steps"]["stages/01-sentiment/elsewhere"] = {"files": {"heads/heads.safetensors": 10}}
    run_folders.write_json(folder / "manifest.json", manifest)
    (method,) = read_study(folder).methods
    assert "its heads no longer tell apart" in verdict(method)


def test_the_terminal_has_both_tables_and_the_two_numbers(tmp_path: Path) -> None:
    folder, out = probed(tmp_path / "run", (55.0, 50.0, 60.0), -8.0), io.StringIO()
    print_tables(folder, Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    first = next(at for at, line in enumerate(lines) if "mean of the tasks seen so far" in line)
    second = next(at for at, line in enumerate(lines) if "mean of all tasks" in line)
    assert first < second
    row = next(line for line in lines[second:] if "02-ruvian" in line)
    assert row.split()[-2:] == ["85.0", "50.0"]
    assert any("Gap to the probe" in line and "55.0" in line for line in lines)
    assert any("Slope of the probe" in line and "−8.0" in line for line in lines)
