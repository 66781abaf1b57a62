"""A run learns one more task months later: only the new stage is trained, wherever its folder stands by then."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import everlearn.training.stage as stage
from everlearn.cli.main import main
from everlearn.data.instance import Task
from everlearn.errors import RecipeError, RunError, UserError
from everlearn.files import read_mapping, read_vouched, write_jsonl
from everlearn.progress import LineProgress
from everlearn.recipe import Recipe, StreamConfig, make_recipe
from everlearn.runs.add import add_task
from everlearn.runs.claim import recipe_of
from everlearn.runs.compare import compare
from everlearn.runs.growth import grows
from everlearn.runs.loop import execute
from everlearn.synthesis import pipeline
from tests.runs.test_loop import TASKS, tiny_recipe

QUIET = LineProgress()
EWC = {"name": "ewc", "fisher_rows": 4}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained, as the terminal calls it."""
    done: list[str] = []
    train = stage.train_stage

    def noting(*args: Any, what: str, **settings: Any) -> None:
        done.append(what)
        train(*args, what=what, **settings)

    monkeypatch.setattr(stage, "train_stage", noting)
    return done


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tasks that SSR has written rows of, which a random model cannot."""
    done: list[str] = []

    def synthesize(task: Task, options: object, tools: Any, **_: object) -> object:
        done.append(task.name)
        return SimpleNamespace(rows=[replace(row, origin="synthetic", id="") for row in task.train[:2]])

    monkeypatch.setattr(pipeline, "synthesize_task", synthesize)
    monkeypatch.setattr(pipeline, "try_base", lambda *_: None)
    return done


def first_two(recipe: Recipe) -> Recipe:
    """The recipe before its last task arrived."""
    tree = recipe.model_dump(mode="json")
    tree["stream"]["tasks"] = tree["stream"]["tasks"][:2]
    return make_recipe(tree)


def last_task(recipe: Recipe) -> dict[str, object]:
    assert isinstance(recipe.stream.tasks, list)
    return recipe.stream.tasks[2].model_dump(mode="json", exclude_defaults=True)


def scores(folder: Path) -> tuple[object, object]:
    return read_vouched(folder / "matrix.json"), read_vouched(folder / "metrics.json")


@pytest.mark.parametrize("method", [EWC, "ssr"], ids=str)
def test_a_run_that_has_grown_is_the_run_that_had_all_tasks_from_the_start(
    tmp_path: Path, tiny_model: Path, trained: list[str], written: list[str], method: object
) -> None:
    whole = execute(tiny_recipe(tmp_path / "whole", tiny_model, method=method))
    recipe = tiny_recipe(tmp_path / "grown", tiny_model, method=method)
    folder = execute(first_two(recipe)).folder
    del trained[:]
    result = add_task(folder, last_task(recipe), QUIET)
    assert trained == ["training 03-places"]
    assert written == (["colours", "animals"] * 2 if method == "ssr" else [])
    assert scores(folder) == scores(whole.folder) == (result.matrix, result.metrics)  # type: ignore[union-attr]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "model" / name).read_bytes() == (whole.folder / "model" / name).read_bytes()
    for stage_folder in sorted((whole.folder / "stages").iterdir()):
        rows = stage_folder / "rehearsal.jsonl"
        assert (
            not rows.exists() or rows.read_bytes() == (folder / "stages" / rows.parent.name / rows.name).read_bytes()
        )
    assert "places" in (folder / "model" / "README.md").read_text()
    del trained[:]
    assert execute(recipe_of(folder), folder=folder).matrix == whole.matrix
    assert not trained


def test_a_recipe_with_a_task_appended_goes_on_in_the_same_folder(
    tmp_path: Path, tiny_model: Path, trained: list[str]
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    execute(first_two(recipe))
    del trained[:]
    assert execute(recipe).matrix["tasks"] == list(TASKS)
    assert trained == ["training 03-places"]
    with pytest.raises(RunError, match=r"differs in stream.tasks\) \(tasks can only be added, at the end\)"):
        execute(first_two(recipe))


def test_a_folder_without_cache_and_data_is_enough(
    tmp_path: Path, tiny_model: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "here" / "base"))
    recipe = tiny_recipe(tmp_path / "here", base, method="ssr", evaluation={"max_new_tokens": 6})
    folder = execute(first_two(recipe)).folder
    new = tmp_path / "there" / "places.jsonl"
    new.parent.mkdir()
    shutil.copy(tmp_path / "here" / "data" / "places.train.jsonl", new)
    there = tmp_path / "there" / "unpacked"
    shutil.copytree(folder, there)
    data = read_mapping(there / "manifest.json")["data"]
    shutil.rmtree(tmp_path / "here")
    del trained[:]
    command = ["add", str(there), "--train", str(new), "--set", "demonstrations=4"]
    assert main(command) == 2
    assert "model.base: there is no model folder" in capsys.readouterr().err
    kept = yaml.safe_load((there / "recipe.yaml").read_text())
    kept["model"]["base"] = str(tiny_model)
    (there / "recipe.yaml").write_text(yaml.safe_dump(kept))
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "task colours: its data cannot be read" in shown
    assert "the rows that the run has kept are used" in shown
    assert trained == ["training 03-places"]
    manifest = read_mapping(there / "manifest.json")
    assert manifest["status"] == "complete"
    assert manifest["data"][:2] == data
    assert read_vouched(there / "matrix.json")["tasks"] == list(TASKS)
    assert {row["task"] for row in map(json.loads, (there / "stages/03-places/rehearsal.jsonl").open())} == {
        "colours",
        "animals",
    }


def test_general_texts_are_kept_like_the_rows_of_tasks(
    tmp_path: Path, tiny_model: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "general.txt"
    texts.write_text("\n\n".join(f"the dog runs and the cat number {at} sleeps" for at in range(4)))
    method = {"name": "gere", "texts": str(texts), "count": 4}
    recipe = tiny_recipe(tmp_path, tiny_model, method=method, evaluation={"max_new_tokens": 6})
    folder = execute(first_two(recipe)).folder
    rows = [
        (folder / f"stages/0{at}-{name}/rehearsal.jsonl").read_text() for at, name in ((1, "colours"), (2, "animals"))
    ]
    texts.unlink()
    del trained[:]
    new = tmp_path / "data" / "places.train.jsonl"
    assert main(["add", str(folder), "--train", str(new), "--name", "places", "--set", "demonstrations=4"]) == 0
    assert "gere: its texts cannot be read" in capsys.readouterr().err
    assert trained == ["training 03-places"]
    assert {*rows, (folder / "stages/03-places/rehearsal.jsonl").read_text()} == {rows[0]}
    assert rows[0].count("\n") == 4


@pytest.mark.parametrize("at", [1, 5])
def test_a_run_that_is_killed_while_it_grows_is_gone_on_with(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str], at: int
) -> None:
    from everlearn.store import RunStore

    recipe = tiny_recipe(tmp_path, tiny_model, method=EWC)
    folder = execute(first_two(recipe)).folder
    make, calls = RunStore._make, iter(range(1, 100))

    def killed(*args: Any) -> Path:
        if next(calls) == at:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(RunStore, "_make", killed)
    with pytest.raises(KeyboardInterrupt):
        add_task(folder, last_task(recipe), QUIET)
    monkeypatch.undo()
    assert main(["report", str(folder)]) == 0
    del trained[:]
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert read_vouched(folder / "matrix.json")["tasks"] == list(TASKS)
    assert read_mapping(folder / "manifest.json")["status"] == "complete"
    with pytest.raises(RecipeError, match="has a task 'places' already"):
        add_task(folder, last_task(recipe), QUIET)


def test_a_run_that_was_stopped_goes_on_first(tmp_path: Path, tiny_model: Path, trained: list[str]) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    folder = execute(first_two(recipe)).folder
    shutil.rmtree(folder / "stages" / "02-animals")
    shutil.rmtree(tmp_path / "runs" / ".cache")
    del trained[:]
    add_task(folder, last_task(recipe), QUIET)
    assert trained == ["training 02-animals", "training 03-places"]


def test_a_comparison_grows_in_every_run(tmp_path: Path, tiny_model: Path, trained: list[str]) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    compare(first_two(recipe), first_two(recipe).compare or methods("sequential", "l2"), [0, 1])
    folder = tmp_path / "runs" / "tiny"
    del trained[:]
    assert main(["add", str(folder), *flags(recipe), "--quiet"]) == 0
    assert trained == ["training 03-places"] * 4
    for name in ("sequential-s0", "l2-s0", "sequential-s1", "l2-s1"):
        assert read_vouched(folder / name / "matrix.json")["tasks"] == list(TASKS)
    assert len(read_vouched(folder / "comparison.json")["runs"]) == 4
    with pytest.raises(RunError, match="is one run of the comparison"):
        add_task(folder / "l2-s0", last_task(recipe), QUIET)


def test_the_embedded_stream_grows_by_files(tmp_path: Path, tiny_model: Path, trained: list[str]) -> None:
    stream = {"tasks": "embedded", "order": ["routing", "sentiment"], "train_limit": 6, "evaluation_limit": 2}
    recipe = tiny_recipe(tmp_path, tiny_model, stream=stream, evaluation={"max_new_tokens": 2})
    folder = execute(recipe).folder
    write_jsonl(tmp_path / "more.jsonl", [{"text": f"thing {at}", "label": str(at % 2)} for at in range(12)])
    del trained[:]
    add_task(folder, {"train": str(tmp_path / "more.jsonl"), "demonstrations": 2}, QUIET)
    add_task(folder, {"train": "embedded", "name": "booking"}, QUIET)
    assert trained == ["training 03-more", "training 04-booking"]
    assert read_vouched(folder / "matrix.json")["tasks"] == ["routing", "sentiment", "more", "booking"]
    with pytest.raises(RecipeError, match="no task 'bookings' is embedded"):
        add_task(folder, {"train": "embedded", "name": "bookings"}, QUIET)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"tasks": "ab"}, {"tasks": "abc"}, True),
        ({"tasks": "ab"}, {"tasks": "ab"}, False),
        ({"tasks": "ab"}, {"tasks": "a"}, False),
        ({"tasks": "ab"}, {"tasks": "cab"}, False),
        ({"tasks": "ab"}, {"tasks": "bac"}, False),
        ({"tasks": "ab"}, {"tasks": "cab", "order": ["a", "b", "c"]}, True),
        ({"tasks": "abc", "order": ["b"]}, {"tasks": "abc", "order": ["b", "a"]}, True),
        ({"tasks": "abc", "order": ["b"]}, {"tasks": "abc"}, False),
        ({"tasks": "embedded", "order": ["sentiment"]}, {"tasks": "embedded"}, True),
        ({"tasks": "embedded", "order": ["routing"]}, {"tasks": "embedded"}, False),
        ({"tasks": "embedded"}, {"tasks": "ab"}, False),
    ],
    ids=str,
)
def test_a_stream_grows_only_at_its_end(old: dict[str, Any], new: dict[str, Any], expected: bool) -> None:
    def stream(keys: dict[str, Any]) -> StreamConfig:
        tasks = keys["tasks"]
        listed = tasks if tasks == "embedded" else [{"name": name, "train": f"{name}.jsonl"} for name in tasks]
        return StreamConfig.model_validate({**keys, "tasks": listed})

    assert grows(stream(old), stream(new)) is expected


@pytest.fixture(scope="module")
def grown_from(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Recipe:
    """The recipe of three tasks; its run has learnt two."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("refused"), tiny_model)
    execute(first_two(recipe))
    return recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "animals"}, "has a task 'animals' already"),
        ({"name": "ANIMALS"}, "has a task 'ANIMALS' already"),
        ({"train": None}, "give --train FILE"),
        ({"train": "gone.jsonl"}, r"stream.tasks\[2\] 'places' train: .*gone.jsonl"),
        ({"name": "a/b"}, "the task to add: name: a folder is called so"),
        ({"metrics": "accuracy"}, "did you mean 'metric'"),
        ({"metric": "speed"}, "unknown metric 'speed'"),
    ],
    ids=str,
)
def test_a_wrong_task_is_refused_before_anything_changes(
    grown_from: Recipe, trained: list[str], changes: dict[str, object], words: str
) -> None:
    folder = Path(grown_from.runs_dir) / grown_from.name
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=words):
        add_task(folder, {**last_task(grown_from), **changes}, QUIET)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not trained


def test_rows_that_have_changed_are_not_trained_on_again_unasked(
    tmp_path: Path, tiny_model: Path, trained: list[str]
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    folder = execute(first_two(recipe)).folder
    file = tmp_path / "data" / "colours.train.jsonl"
    file.write_text(file.read_text() + json.dumps({"input": "one more", "output": "colours 1"}) + "\n")
    del trained[:]
    with pytest.raises(RunError, match="the rows of task colours are not those that the run was trained on"):
        add_task(folder, last_task(recipe), QUIET)
    assert recipe_of(folder).stream.tasks == first_two(recipe).stream.tasks
    file.unlink()
    add_task(folder, last_task(recipe), QUIET)
    assert trained == ["training 03-places"]


def test_a_method_that_trains_once_cannot_grow(tmp_path: Path, tiny_model: Path, trained: list[str]) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, method="multitask")
    folder = execute(first_two(recipe)).folder
    comparison = first_two(recipe).model_copy(update={"name": "several"})
    compare(comparison, methods("sequential", "multitask"))
    del trained[:]
    for place in (folder, tmp_path / "runs" / "several"):
        with pytest.raises(RunError, match="with another task the method multitask would train other stages"):
            add_task(place, last_task(recipe), QUIET)
    assert not trained
    assert len(yaml.safe_load((folder / "recipe.yaml").read_text())["stream"]["tasks"]) == 2


def test_what_has_no_tasks_or_is_damaged_is_refused_with_what_to_do(tmp_path: Path, tiny_model: Path) -> None:
    task = {"train": "a.jsonl"}
    with pytest.raises(RunError, match="is no run folder"):
        add_task(tmp_path / "nowhere", task, QUIET)
    update = tmp_path / "update"
    update.mkdir()
    (update / "recipe.yaml").write_text("versions: []\n")
    with pytest.raises(RunError, match=r"holds version updates.*--add-version DATA"):
        add_task(update, task, QUIET)
    recipe = tiny_recipe(tmp_path, tiny_model)
    folder = execute(first_two(recipe)).folder
    (folder / "stages/01-colours/training/history.jsonl").unlink()
    with pytest.raises(RunError, match=r"history.jsonl is missing: run 'everlearn doctor"):
        add_task(folder, last_task(recipe), QUIET)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest.json is corrupt"):
        add_task(folder, last_task(recipe), QUIET)


def methods(*names: str) -> list[Any]:
    from everlearn.recipe import MethodConfig

    return [MethodConfig(name=name) for name in names]


def flags(recipe: Recipe) -> list[str]:
    task = last_task(recipe)
    keys = ("train", "evaluation", "name")
    return [*(f"--{key}={task[key]}" for key in keys), "--set", f"demonstrations={task['demonstrations']}"]
