"""Streams whose tasks bring classes: what is refused, and what manifest and report say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.api import run
from everlearn.cli.main import main
from everlearn.data.instance import Instance, Task
from everlearn.data.stream import load_stream
from everlearn.errors import DataError, RecipeError, RunError
from everlearn.evaluation.tasks import check_lengths
from everlearn.files import read_jsonl, read_vouched
from everlearn.recipe import Recipe, load_recipe
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.runs.loop import execute
from everlearn.runs.prepare import prepare

CLASSES = ("book ticket", "find hotel", "rent car", "tell weather")


def small(tmp_path: Path, **keys: object) -> Recipe:
    """The shipped recipe with two tasks of two classes."""
    given = {
        "stream.order": ["task-1", "task-2"],
        "stream.classes_per_task": 2,
        "stream.train_limit": 8,
        "stream.evaluation_limit": 4,
        "training.epochs": 1,
        "evaluation.general": False,
        "evaluation.unseen_tasks": True,
        "evaluation.probing": {"probes": []},
        "method": "sequential",
        "runs_dir": str(tmp_path),
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    return load_recipe("incremental", given)


def test_manifest_and_report_say_the_scenario(tmp_path: Path) -> None:
    done = execute(small(tmp_path))
    manifest = read_vouched(done.folder / "manifest.json")
    assert manifest["scenario"] == "class_incremental"
    assert [tuple(task["classes"]) for task in manifest["tasks"]] == [CLASSES[:2], CLASSES[2:]]
    assert "forgetting_highest" in done.metrics
    shown = page(read_study(done.folder))
    assert "Class-incremental" in shown
    assert "4 classes in 2 tasks; the task of a row is unknown when it is answered" in shown


@pytest.mark.parametrize("method", [{"method": "progressive_prompts"}, {"method": "lcia", "method__routing": "task"}])
def test_a_method_that_must_be_told_the_task_is_refused_where_it_is_unknown(
    tmp_path: Path, method: dict[str, object]
) -> None:
    with pytest.raises(RecipeError, match=r"must be told which task a row belongs to, and in stream\.scenario"):
        prepare(small(tmp_path, **method, model__tuning="lora"))


def test_inspection_shows_the_classes_of_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "incremental", "--rows", "0"]) == 0
    shown = capsys.readouterr().out
    assert "class_incremental: 25 classes in 5 tasks" in shown
    assert "5 classes, with their training rows: 'order food' 40, 'find recipe' 40" in shown


def test_where_the_task_is_known_an_answer_is_one_of_its_classes(tmp_path: Path) -> None:
    done = execute(small(tmp_path, stream__scenario="task_incremental"))
    for stage in ("00-base", "01-task-1", "02-task-2"):
        for task, classes in (("task-1", CLASSES[:2]), ("task-2", CLASSES[2:])):
            rows = list(read_jsonl(done.folder / "stages" / stage / "predictions" / task / "predictions.jsonl"))
            assert {row["prediction"] for row in rows} <= set(classes)
            assert {row["finish_reason"] for row in rows} == {"chosen"}
    shown = page(read_study(done.folder))
    assert "Task-incremental" in shown
    assert "the answer is the likeliest of its task's classes" in " ".join(shown.split()).replace("&#x27;", "'")
    card = (done.folder / "model" / "README.md").read_text()
    assert "the likeliest of the classes of a row's task" in card
    assert "writes freely, and what was measured is a choice among the classes of a row's task" in card
    assert "as they were measured" not in card


def test_a_run_takes_further_tasks_of_the_data_set_that_it_was_cut_from(tmp_path: Path) -> None:
    record = Path("stages", "01-task-1", "training", "artifact.json")
    first = execute(small(tmp_path, stream__order=["task-1"])).folder
    before = (first / record).stat().st_mtime_ns
    done = execute(small(tmp_path))
    assert (done.folder, list(done.matrix["trained_at"])) == (first, ["task-1", "task-2"])
    assert (first / record).stat().st_mtime_ns == before
    with pytest.raises(RunError, match=r"differs in stream\.order"):
        execute(small(tmp_path, stream__order=["task-2", "task-1", "task-3"]))


def test_a_prompt_that_leaves_no_room_for_the_longest_class_is_refused() -> None:
    row = Instance("", "x", "a", "t", id="r")
    with pytest.raises(DataError, match=r"has 6 tokens and the longest class has 3, the model's context is 8"):
        check_lengths(Task("t", (row,), (row,)), [[0] * 6], 8, room=3)
    check_lengths(Task("t", (row,), (row,)), [[0] * 6], 9, room=3)


def test_a_stream_made_in_python_keeps_its_scenario_and_the_order_of_its_classes(tmp_path: Path) -> None:
    recipe = small(tmp_path, stream__class_order="seed")
    stream = load_stream(recipe.stream, seed=recipe.seed)
    done = run(recipe, stream=stream, name="mine")
    manifest = read_vouched(done.folder / "manifest.json")
    assert manifest["scenario"] == "class_incremental"
    assert [tuple(task["classes"]) for task in manifest["tasks"]] == [task.classes for task in stream]
    assert stream.classes != tuple(sorted(stream.classes))
