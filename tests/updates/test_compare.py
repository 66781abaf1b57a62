"""Comparisons: pairwise differences, costs, the verdict in plain words, the report."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from everlearn.cli.main import main
from everlearn.errors import RecipeError
from everlearn.files import read_vouched, write_vouched
from everlearn.progress import LineProgress
from everlearn.report.versions.figures import short_perplexity
from everlearn.report.versions.html import verdict, write_report
from everlearn.updates.compare import compare
from everlearn.updates.config import QualityConfig, load_update_recipe
from everlearn.updates.executor import execute
from everlearn.updates.folder import claim
from everlearn.updates.quality import difference
from tests.updates.tiny_runs import tiny_recipe, tiny_tree

SWEEPS = Path(__file__).parents[2] / "src" / "everlearn" / "recipes" / "sweeps"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("comparison")
    found = compare(tiny_recipe(folder, versions=2).model_copy(update={"seeds": [1, 2]}), LineProgress())
    return folder / "runs" / "tiny", found


def test_each_arm_has_its_cost_and_quality_for_each_seed(compared) -> None:
    folder, found = compared
    assert [arm["label"] for arm in found["arms"]] == ["ptfs", "cpt", "path_switching"]
    for arm in found["arms"]:
        assert len(arm["own"]["v2"]["values"]) == 2
        low, high = arm["own"]["v2"]["interval"]
        assert low <= arm["own"]["v2"]["mean"] <= high
        assert (folder / f"{arm['label']}-s2" / "releases" / "v2" / "config.json").exists()
    steps = {arm["label"]: arm["executed"]["steps"] for arm in found["arms"]}
    assert steps["cpt"] < steps["path_switching"] < steps["ptfs"]


def test_the_first_version_is_the_same_from_scratch_and_continued(compared) -> None:
    _, found = compared
    ptfs, cpt, _ = found["arms"]
    assert ptfs["own"]["v1"] == cpt["own"]["v1"]
    assert ptfs["own"]["v2"] != cpt["own"]["v2"]


def test_differences_are_taken_against_training_from_scratch(compared) -> None:
    folder, found = compared
    ours = found["arms"][2]
    assert ours["against"] == "ptfs"
    singles = []
    for seed in (1, 2):
        cells = {
            label: json.loads((folder / f"{label}-s{seed}" / "quality.json").read_text())["cells"]["v2"]
            for label in ("ptfs", "path_switching")
        }
        logs = [
            math.log(cells["path_switching"][v]["perplexity"] / cells["ptfs"][v]["perplexity"]) for v in ("v1", "v2")
        ]
        singles.append(100 * math.expm1(np.mean(logs)))
    assert ours["difference"]["seen"]["v2"]["percent"] == pytest.approx(np.mean(singles), abs=1e-3)


def test_the_verdict_says_plainly_what_was_found(compared) -> None:
    _, found = compared
    arms = json.loads(json.dumps(found["arms"]))
    entry = arms[2]["difference"]["seen"]["v2"]
    entry["percent"] = 0.4
    assert "Path switching reached the quality" in verdict({**found, "arms": arms})
    entry["percent"] = 3.0
    assert "did not reach" in verdict({**found, "arms": arms})
    assert "+3.0 %" in verdict({**found, "arms": arms})


def test_a_comparison_goes_on_from_its_folder(compared, capsys: pytest.CaptureFixture[str]) -> None:
    folder, found = compared
    write_vouched(folder / "comparison.json", {**read_vouched(folder / "comparison.json"), "status": "running"})
    assert main(["report", str(folder)]) == 2
    assert "is not finished: go on with 'everlearn resume" in capsys.readouterr().err
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert read_vouched(folder / "comparison.json") == json.loads(json.dumps(found))
    assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize("text", ["versions: [", "", "- a list"])
def test_a_damaged_recipe_of_a_comparison_is_named(
    compared, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compared[0], tmp_path / "damaged")
    (tmp_path / "damaged" / "recipe.yaml").write_text(text)
    assert main(["resume", str(tmp_path / "damaged"), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "recipe.yaml is corrupt" in told
    assert "delete this file and give the recipe to 'everlearn update' again" in told


def test_a_difference_is_paired_over_blocks() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, 200)  # blocks differ much more than the releases do
    one, two = {"v": {"likelihoods": hard + 0.01}}, {"v": {"likelihoods": hard}}
    found = difference(one, two, ["v"], QualityConfig(), seed=0)
    assert found["percent"] == pytest.approx(100 * math.expm1(0.01))
    low, high = found["interval"]
    assert high - low < 1e-6


def test_the_reports_are_single_files_without_script_or_network(compared) -> None:
    folder, _ = compared
    for place in (folder, folder / "path_switching-s1"):
        text = write_report(place).read_text()
        assert "<script" not in text
        assert not re.search(r"""(src|href)=["'](?!#)""", text)
        assert "Content-Security-Policy" in text
    run = (folder / "path_switching-s1" / "report.html").read_text()
    assert "Planned rates" in run
    assert "Executed rates" in run
    assert "main path" in run


def test_the_report_of_a_comparison_says_what_its_labels_and_figures_mean(compared) -> None:
    folder, _ = compared
    text = write_report(folder).read_text()
    assert "Perplexity: lower is better; ptfs: pre-training from scratch; cpt: continual pre-training" in text
    assert "in brackets: interval over the seeds." in text


def test_a_run_folder_may_be_the_working_one(compared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(compared[0] / "path_switching-s1")
    assert main(["update", ".", "--plan"]) == 0


def test_what_scrolls_in_the_reports_has_a_name_and_is_reached_by_keyboard(compared) -> None:
    folder, _ = compared
    for place in (folder, folder / "path_switching-s1"):
        text = write_report(place).read_text()
        frames = re.findall(r'<div class="scroll"[^>]*>', text)
        assert frames
        assert all('tabindex="0"' in frame and 'aria-label="' in frame for frame in frames)
        assert '<pre tabindex="0">' in text
        assert '<p class="soft"></p>' not in text


@pytest.mark.parametrize(
    ("value", "text"), [(1.968, "1.97"), (99.999, "100.0"), (812.44, "812.4"), (12345.6, "1.2e4")]
)
def test_a_perplexity_of_any_size_fits_a_cell(value: float, text: str) -> None:
    assert short_perplexity(value) == text


def test_names_from_data_are_escaped(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path, versions=1))
    folder = tmp_path / "runs" / "tiny"
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text().replace("id: v1", "id: <b>v1</b>"))
    for name in ("plan.json", "quality.json", "ledger.json", "manifest.json"):
        text = json.dumps(read_vouched(folder / name)).replace('"v1"', '"<b>v1</b>"')
        write_vouched(folder / name, json.loads(text))
    assert "<b>v1</b>" not in write_report(folder).read_text()


def test_arms_of_a_recipe_set_keys_and_name_their_reference(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        versions=1,
        compare=[
            {"label": "short", "set": {"path.branch_fraction": 0.2}},
            {"label": "long", "set": {"path.branch_fraction": 0.6}, "against": "short"},
        ],
    )
    found = compare(recipe, LineProgress())
    short, long = found["arms"]
    assert "difference" not in short
    assert long["against"] == "short"
    plans = [json.loads((tmp_path / "runs" / "tiny" / f"{n}-s1" / "plan.json").read_text()) for n in ("short", "long")]
    branches = [plan["segments"][1]["steps"] for plan in plans]
    assert branches[0] < branches[1]
    assert "2 arms" in verdict(found)


def test_seeds_of_the_recipe_are_run_and_more_added_from_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny_tree(tmp_path, versions=1, seeds=[1], compare=[{"label": "one"}])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    folder = tmp_path / "runs" / "tiny"
    assert main(["update", str(tmp_path / "recipe.yaml"), "--compare", "--quiet"]) == 0
    assert json.loads((folder / "comparison.json").read_text())["seeds"] == [1]
    ledger = (folder / "one-s1" / "ledger.json").read_text()
    stored = (folder / "one-s1" / "recipe.yaml").read_text()
    assert "seeds" not in yaml.safe_load(stored)
    assert main(["update", str(folder), "--compare", "--seeds", "1,2", "--quiet"]) == 0
    assert json.loads((folder / "comparison.json").read_text())["seeds"] == [1, 2]
    assert (folder / "one-s1" / "ledger.json").read_text() == ledger
    assert (folder / "one-s1" / "recipe.yaml").read_text() == stored
    assert main(["update", str(folder), "--compare", "--quiet"]) == 0
    assert json.loads((folder / "comparison.json").read_text())["seeds"] == [1, 2]
    assert main(["update", str(folder / "one-s1"), "--compare"]) == 2
    assert "is one run: give --compare a recipe" in capsys.readouterr().err


def test_a_run_folder_does_not_depend_on_the_seeds_of_comparisons(tmp_path: Path) -> None:
    claim(tmp_path / "run", tiny_recipe(tmp_path))
    claim(tmp_path / "run", tiny_recipe(tmp_path, seeds=[1, 2]))
    assert "seeds" not in yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())


def test_an_arm_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, versions=1, compare=[{"label": "a", "set": {"path.branch_fractoin": 0.2}}])
    with pytest.raises(
        RecipeError, match=r"arm 'a': unknown key 'path.branch_fractoin' \(did you mean 'branch_fraction'"
    ):
        compare(recipe, LineProgress())


def test_plan_prints_58_percent_for_four_equal_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tiny_tree(tmp_path, versions=4)
    for entry in tree["versions"]:
        entry["steps"] = 5
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert main(["update", str(tmp_path / "recipe.yaml"), "--plan", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Path switching +29 +7,424 +\S+ +58\.0 %", shown)
    assert re.search(r"Continual pre-training +20 +5,120 +\S+ +40\.0 %", shown)
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize("name", ["embedded", *(f"embedded:{path.stem}" for path in sorted(SWEEPS.glob("*.yaml")))])
def test_every_shipped_recipe_is_valid(name: str) -> None:
    recipe = load_update_recipe(name)
    for arm in recipe.arms():
        steps = (recipe.with_arm(arm, 0).versions.steps or 100,) * 4
        assert recipe.with_arm(arm, 0).version_plan(steps).problems() == []


def test_an_unknown_sweep_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'branch_fraction'"):
        load_update_recipe("embedded:branch_fractions")
