"""Streams whose tasks bring classes: what is refused, and what manifest and report say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.cli.main import main
from everlearn.errors import RecipeError
from everlearn.files import read_vouched
from everlearn.recipe import Recipe, load_recipe
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.runs.loop import execute
from everlearn.runs.prepare import prepare


def small(tmp_path: Path, **keys: object) -> Recipe:
    """The shipped recipe with two tasks of two classes."""
    given = {
        "stream.order": ["task-1", "task-2"],
        "stream.classes_per_task": 2,
        "stream.train_limit": 8,
        "stream.evaluation_limit": 4,
        "training.epochs": 1,
        "evaluation.general": False,
        "runs_dir": str(tmp_path),
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    return load_recipe("incremental", given)


def test_manifest_and_report_say_the_scenario(tmp_path: Path) -> None:
    done = execute(small(tmp_path))
    manifest = read_vouched(done.folder / "manifest.json")
    assert manifest["scenario"] == "class_incremental"
    assert [task["classes"] for task in manifest["tasks"]] == [
        ["book ticket", "find hotel"],
        ["rent car", "tell weather"],
    ]
    assert "forgetting_highest" in done.metrics
    shown = page(read_study(done.folder))
    assert "Class-incremental" in shown
    assert "4 classes in 2 tasks; the task of a row is unknown when it is answered" in shown


@pytest.mark.parametrize("method", ["progressive_prompts", {"name": "lcia", "routing": "task"}])
def test_a_method_that_must_be_told_the_task_is_refused_where_it_is_unknown(tmp_path: Path, method: object) -> None:
    with pytest.raises(RecipeError, match=r"must be told which task a row belongs to, and in stream\.scenario"):
        prepare(small(tmp_path, method=method, model__tuning="lora"))


def test_inspection_shows_the_classes_of_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "incremental", "--rows", "0"]) == 0
    shown = capsys.readouterr().out
    assert "class_incremental: 25 classes in 5 tasks" in shown
    assert "5 classes, with their training rows: 'order food' 40, 'find recipe' 40" in shown
