from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

from everlearn.report.facts.study import read_study
from everlearn.report.facts.synthetic import Fate, read_synthesis, sample
from everlearn.report.html import page
from everlearn.report.page.numbers import percent
from tests.report import run_folders
from tests.report.pages import Element, parse

STAGE = "stages/01-sentiment/synthesis"


def rehearsal_part(folder: Path) -> Element:
    tree = parse(page(read_study(folder)))
    return next(part for part in tree.all("section") if part.attributes.get("id") == "rehearsal")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_funnel_counts_are_those_of_the_files(single: Path):
    found = read_synthesis(single / STAGE)
    assert found is not None
    counts = json.loads((single / STAGE / "parsed" / "counts.json").read_text())
    assert [level.count for level in found.levels] == [380, counts["pieces"], counts["kept"], 30, 28]
    assert found.levels[2].dropped == counts["dropped"]
    assert found.levels[3].dropped == {"not selected": counts["kept"] - 30}
    assert found.levels[4].dropped == {"strange_reason": 2}


def test_filters_of_the_improved_preset_have_their_own_level(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "run", label="ssr-improved", tasks=("sentiment", "ruvian"))
    found = read_synthesis(folder / STAGE)
    assert found is not None
    removed = len(rows(folder / STAGE / "filtered" / "rejected.jsonl"))
    assert removed > 0
    assert found.levels[3].title == "after the filters"
    assert found.levels[3].dropped == {"duplicate": removed}
    assert "too like an earlier instance" in rehearsal_part(folder).text


def test_every_instance_has_one_fate(single: Path):
    found = read_synthesis(single / STAGE)
    assert found is not None
    kinds = Counter(fate.kind for fate in found.fates)
    counts = json.loads((single / STAGE / "parsed" / "counts.json").read_text())
    assert len(found.fates) == counts["pieces"]
    assert kinds["rehearsed"] == len(rows(single / STAGE / "refined" / "refined.jsonl"))
    assert kinds["dropped"] == len(rows(single / STAGE / "parsed" / "rejected.jsonl")) + 2
    assert all(fate.reason for fate in found.fates if fate.kind == "dropped")


def test_rows_answered_well_but_not_needed_are_no_faults(single: Path, tmp_path: Path):
    folder = shutil.copytree(single / STAGE, tmp_path / "synthesis")
    path = folder / "refined" / "rejected.jsonl"
    (folder / "refined" / "artifact.json").unlink()
    path.write_text(path.read_text().replace("strange_reason", "surplus"))
    found = read_synthesis(folder)
    assert found is not None
    surplus = [fate for fate in found.fates if "more than were asked for" in fate.reason]
    assert [fate.kind for fate in surplus] == ["spare", "spare"]
    assert all(fate.refined for fate in surplus)


def test_without_refinement_the_selected_rows_are_the_result(single: Path, tmp_path: Path):
    folder = shutil.copytree(single / STAGE, tmp_path / "synthesis")
    shutil.rmtree(folder / "refined")
    found = read_synthesis(folder)
    assert found is not None
    kinds = Counter(fate.kind for fate in found.fates)
    assert kinds["selected"] == 30
    assert "rehearsed" not in kinds


def test_invented_instructions_are_shown_with_the_inputs(single: Path, tmp_path: Path):
    run = Path(shutil.copytree(single, tmp_path / "run"))
    path = run / STAGE / "demonstrations.jsonl"
    demonstrations = rows(path)
    for place, row in enumerate(demonstrations):
        row["instruction"] = f"do task {place}"
    path.write_text("\n".join(map(json.dumps, demonstrations)))
    beside = rehearsal_part(run).one("div", "beside")
    assert "do task 7" in beside.one("div", "demonstrations").all("li")[7].text
    assert beside.one("div", "instances").one("li").text.startswith("Mark the remark")


def test_fewer_rows_than_asked_for_is_said(single: Path):
    assert "28 rows of 30 asked for" in rehearsal_part(single).one("summary").text


def test_sample_holds_every_reason_and_keeps_its_bound():
    fates = [Fate("rehearsed", str(i)) for i in range(500)] + [Fate("spare", str(i)) for i in range(500)]
    fates += [Fate("dropped", str(i), reason=f"reason {i % 7}") for i in range(700)]
    chosen = sample(fates, 30)
    assert len(chosen) == 30
    assert {fate.reason for fate in chosen} == {"", *(f"reason {i}" for i in range(7))}
    assert sum(fate.kind == "rehearsed" for fate in chosen) >= 6
    assert sample(fates[:5], 30) == fates[:5]


def test_demonstrations_stand_beside_the_instances(single: Path):
    beside = rehearsal_part(single).one("div", "beside")
    demonstrations = rows(single / STAGE / "demonstrations.jsonl")
    shown = beside.one("div", "demonstrations").all("li")
    assert len(shown) == len(demonstrations) == 20
    assert demonstrations[0]["input"] in shown[0].text
    assert demonstrations[0]["output"] in shown[0].text
    instances = beside.one("div", "instances").all("li")
    assert len(instances) == 30
    assert {"rehearsed", "spare", "dropped"} <= set().union(*(item.classes for item in instances))
    assert all(item.one("p", "fate").text for item in instances)


def test_rows_that_are_not_shown_have_their_place_named(single: Path):
    places = [part.one("code").text for part in rehearsal_part(single).all("div", "instances")]
    assert places[0] == f"{single.name}/stages/01-sentiment/synthesis"
    assert all((single.parent / place).is_dir() for place in places)


def test_mix_of_each_stage_counts_rehearsed_rows_by_task_and_origin(single: Path):
    mix = rehearsal_part(single).one("table", "mix")
    cells = [[cell.text for cell in row.all("td")] for row in mix.one("tbody").all("tr")]
    assert cells[0] == ["300", "0", "–"]
    assert cells[2] == ["300", "60", "sentiment 30 synthetic; ruvian 30 synthetic"]


def test_label_distribution_shows_skew(single: Path):
    table = rehearsal_part(single).one("table", "labels")
    refined = [row["targets"] for row in rows(single / STAGE / "refined" / "refined.jsonl")]
    shown = {row.one("th").text: [cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")}
    assert shown["praise"][2] == percent(100 * refined.count("praise") / len(refined))
    assert shown["anything else"][2] == percent(0)


def test_a_task_without_a_small_set_of_answers_has_no_label_table(single: Path):
    ruvian = rehearsal_part(single).all("details", "synthesis")[1]
    assert "ruvian" in ruvian.one("summary").text
    assert not ruvian.all("table", "labels")


def test_sequential_tuning_has_no_rehearsal_section(compared: Path):
    tree = parse(page(read_study(compared / "sequential-s42")))
    assert "rehearsal" not in [part.attributes.get("id") for part in tree.all("section")]


def test_reasons_the_report_does_not_know_are_shown_as_they_are(single: Path):
    assert "2 strange reason" in rehearsal_part(single).text
