"""The numbers in matrix, comparison, curves and provenance are those of the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.page.numbers import duration, score
from everlearn.report.sections.heatmap import level_of
from tests.report.pages import Element, parse


def section(folder: Path, name: str) -> Element:
    tree = parse(page(read_study(folder)))
    return next(part for part in tree.all("section") if part.attributes.get("id") == name)


def first_text(cell: Element) -> str:
    return next(child for child in cell.children if isinstance(child, str))


def test_heat_map_cells_are_the_matrix(single: Path):
    matrix = json.loads((single / "matrix.json").read_text())
    rows = section(single, "matrix").one("tbody").all("tr")
    shown = [[first_text(cell) for cell in row.all("td")] for row in rows]
    assert shown == [[score(value) for value in row] for row in [matrix["base"], *matrix["values"]]]


def test_heat_map_outlines_the_stage_that_taught_the_task(single: Path):
    rows = section(single, "matrix").one("tbody").all("tr")[1:]
    outlined = [[place for place, cell in enumerate(row.all("td")) if "learnt" in cell.classes] for row in rows]
    assert outlined == [[0], [1], [2], [3], [4]]


def test_a_comparison_has_one_heat_map_per_method_with_means_over_seeds(compared: Path):
    maps = section(compared, "matrix").all("figure")
    assert [figure.one("strong").text for figure in maps] == ["sequential", "random rehearsal", "SSR", "multitask"]
    values = [
        json.loads((compared / f"ssr-s{seed}" / "matrix.json").read_text())["values"][4][1] for seed in (42, 43, 44)
    ]
    cell = maps[2].one("tbody").all("tr")[5].all("td")[1]
    assert first_text(cell) == score(sum(values) / 3)
    assert cell.one("span", "ends").text == f"{min(values):.0f}–{max(values):.0f}"


@pytest.mark.parametrize(("value", "step"), [(0, 0), (4.9, 0), (5.1, 1), (50, 5), (96, 10), (100, 10), (120, 10)])
def test_colour_steps_cover_the_scale(value: float, step: int):
    assert level_of(value) == step


def test_comparison_table_shows_summary_and_marks_the_best(compared: Path):
    summary = json.loads((compared / "comparison.json").read_text())["summary"]
    table = section(compared, "comparison").one("table")
    heads = [head.text.split(" ")[0] for head in table.one("thead").all("th")]
    assert heads == ["Method", "AR", "BWT", "FWT", "Forgetting", "Average", "General", "Time"]
    rows = {row.one("bdi").text: row for row in table.one("tbody").all("tr") if row.all("bdi")}
    for title, label in (("sequential", "sequential"), ("SSR", "ssr"), ("multitask", "multitask")):
        assert rows[title].all("td")[0].text.startswith(score(summary[label]["AR"]["mean"]))
    assert [title for title, row in rows.items() if row.all("td")[0].all("strong")] == ["SSR"]
    assert [title for title, row in rows.items() if row.all("td")[3].all("strong")] == ["SSR"], "least forgetting"
    assert "upper bound" in rows["multitask"].text
    assert "The last accuracy equals AR" in section(compared, "comparison").text
    base = table.one("tr", "base").all("td")
    assert base[0].text == score(read_base(compared))


def read_base(folder: Path) -> float:
    values = [json.loads((folder / f"sequential-s{s}" / "matrix.json").read_text())["base"] for s in (42, 43, 44)]
    return sum(map(sum, values)) / 15


def test_overlapping_intervals_are_called_undecided(compared: Path, tmp_path: Path):
    assert "do not tell the two apart" in section(compared, "comparison").text


def test_equal_averages_have_no_winner(compared: Path, tmp_path: Path):
    shutil.copytree(compared, tmp_path / "tie")
    comparison = json.loads((tmp_path / "tie" / "comparison.json").read_text())
    for label in comparison["summary"]:
        comparison["summary"][label] = comparison["summary"]["ssr"]
    (tmp_path / "tie" / "comparison.json").write_text(json.dumps(comparison))
    assert "reach the same AR, which no other method exceeds" in section(tmp_path / "tie", "comparison").text


def test_dot_plots_have_a_row_per_method_and_describe_themselves(compared: Path):
    charts = section(compared, "comparison").all("svg", "chart")
    assert len(charts) == 4
    labels = [label.text for label in charts[0].all("text", "label")]
    assert labels == ["sequential", "random rehearsal", "SSR", "multitask"]
    assert "SSR 9" in charts[0].one("desc").text


def test_a_single_run_has_no_comparison(single: Path):
    names = [part.attributes.get("id") for part in parse(page(read_study(single))).one("main").all("section")]
    assert names[0] == "matrix"
    assert "comparison" not in names


def test_every_task_has_a_curve_and_its_values_are_spoken(single: Path):
    matrix = json.loads((single / "matrix.json").read_text())
    figures = section(single, "curves").all("figure")
    captions = [figure.one("figcaption").text for figure in figures]
    assert captions[:5] == [f"{task} learnt at stage {i}" for i, task in enumerate(matrix["tasks"], 1)]
    for task, figure in enumerate(figures[:5]):
        spoken = figure.one("desc").text
        course = [matrix["base"][task], *(row[task] for row in matrix["values"])]
        for place, value in enumerate(course):
            assert f"{place or 'base'}: {score(value)}" in spoken
    assert [caption.split(" ")[0] for caption in captions[5:]] == ["General", "Perplexity", "Training"]


def test_lines_differ_by_dash_and_marker_not_by_colour_alone(compared: Path):
    chart = section(compared, "curves").one("svg", "chart")
    lines = chart.all("path", "line")
    assert len({line.attributes.get("stroke-dasharray") for line in lines}) == len(lines) == 4
    assert len({mark.tag for mark in chart.all(css="mark")}) > 1


def test_times_add_up(single: Path):
    steps = json.loads((single / "manifest.json").read_text())["steps"]
    total = sum(step["seconds"] for name, step in steps.items() if name.startswith("stages/02-ruvian/"))
    table = section(single, "origin").one("table", "times")
    row = next(row for row in table.one("tbody").all("tr") if row.one("th").text == "02-ruvian")
    assert row.one("strong").text == duration(total)


def test_every_step_is_listed_with_its_fingerprint_and_reuse_is_marked(single: Path):
    steps = json.loads((single / "manifest.json").read_text())["steps"]
    rows = section(single, "origin").one("table", "steps").one("tbody").all("tr")
    assert len(rows) == len(steps)
    for row, (name, step) in zip(rows, steps.items(), strict=True):
        assert row.one("th").text == name.removeprefix("stages/")
        assert row.one("code").text == step["fingerprint"][:12]
        assert ("↺" in row.text) == step["reused"]


def test_recipe_versions_and_machine_are_shown_as_text(hostile: Path):
    part = section(hostile, "origin")
    assert part.one("pre").text == (hostile / "recipe.yaml").read_text().replace("\x00", "\u2400")
    assert "2.13.0+cpu" in part.text
    assert "<64-Core>" in part.text
