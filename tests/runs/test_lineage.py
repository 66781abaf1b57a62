"""The lineage of a run says which weights came from which, and keeps saying it when the run grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.files import read_vouched
from everlearn.progress import LineProgress
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.sections.lineage import lineage
from everlearn.runs.add import add_task
from everlearn.runs.claim import recipe_of
from everlearn.runs.loop import execute
from tests.malformed.spoilt_json import spoilt
from tests.runs.test_growth import first_two, last_task
from tests.runs.test_loop import tiny_recipe

FAST = {"max_new_tokens": 2, "bootstrap_samples": 100, "general": False}


def origins(folder: Path) -> list[list[list[str]]]:
    """Of each stage's weights, where they come from."""
    stages = read_vouched(folder / "lineage.json")["stages"]
    return [[weights["from"] for weights in stage["weights"]] for stage in stages]


def test_a_stage_that_is_added_stands_beside_those_that_were_there(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, method="random_rehearsal", evaluation=FAST)
    folder = execute(first_two(recipe)).folder
    before = read_vouched(folder / "lineage.json")
    assert before["method"]["name"] == "random_rehearsal"
    assert before["model"]["fingerprint"]
    add_task(folder, last_task(recipe), LineProgress())
    after = read_vouched(folder / "lineage.json")
    assert after["stages"][:2] == before["stages"]
    assert after["stages"][2]["added"] >= before["stages"][1]["added"]
    assert after["stages"][2]["tasks"] == {"places": 12}
    assert after["stages"][2]["rehearsed"] == {"colours": 1, "animals": 1}
    assert [stage["released"] for stage in after["stages"]] == [
        f"stages/{name}/training" for name in ("01-colours", "02-animals", "03-places")
    ]
    assert origins(folder) == [[["base"]], [["stages/01-colours/training"]], [["stages/02-animals/training"]]]
    shown = page(read_study(folder))
    for words in ("Which weights came from which", "02-animals/training", "colours 1, animals 1", "released"):
        assert words in shown
    execute(recipe_of(folder), folder=folder)
    assert read_vouched(folder / "lineage.json") == after


@pytest.mark.parametrize(
    ("method", "second"),
    [
        ("single_task", [["base"]]),
        ("merging", [["stages/01-colours/training"], ["stages/01-colours/training", "stages/02-animals/training"]]),
    ],
)
def test_weights_come_from_what_they_were_trained_or_merged_from(
    tmp_path: Path, tiny_model: Path, method: str, second: list[list[str]]
) -> None:
    folder = execute(first_two(tiny_recipe(tmp_path, tiny_model, method=method, evaluation=FAST))).folder
    assert origins(folder) == [[["base"]], second]


def test_a_lineage_that_was_changed_is_named_and_made_anew(tmp_path: Path, tiny_model: Path) -> None:
    folder = execute(first_two(tiny_recipe(tmp_path, tiny_model, evaluation=FAST))).folder
    path, study = folder / "lineage.json", read_study(folder)
    written = json.loads(path.read_text())
    for place, changed in spoilt(written, at_once=1):
        path.write_text(json.dumps(changed))
        if place != "sum: gone":  # as a file without a sum is read
            with pytest.raises(RunError, match=r"lineage.json is corrupt"):
                lineage(study)
    path.unlink()
    execute(recipe_of(folder), folder=folder)
    made = [stage["weights"] for stage in json.loads(path.read_text())["stages"]]
    assert made == [stage["weights"] for stage in written["stages"]]
