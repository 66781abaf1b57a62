"""A project that is moved keeps its runs, and a run's folder is there from its first second, but not if refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import everlearn
from everlearn.errors import RunError, UserError
from everlearn.files import read_mapping
from everlearn.recipe import load_recipe
from everlearn.runs import claim, loop
from everlearn.runs.claim import recipe_of
from everlearn.runs.compare import compare, planned
from everlearn.runs.loop import execute
from tests.killed import KilledAt
from tests.runs.test_loop import tiny_recipe
from tests.updates.tiny_runs import tiny_tree


def make_project(folder: Path, model: Path) -> Path:
    """A folder with a recipe, its data, its model and the runs; the recipe names all by relative paths."""
    tree = tiny_recipe(folder, model).model_dump(mode="json")
    shutil.copytree(model, folder / "base")
    tree["model"]["base"] = "base"
    for task in tree["stream"]["tasks"]:
        for key in ("train", "evaluation"):
            task[key] = f"data/{Path(task[key]).name}"
    del tree["runs_dir"]
    tree["stream"]["order"] = ["colours", "places"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything that would be computed again fails."""
    from everlearn.store import RunStore

    def refuse(*_: object) -> None:
        raise AssertionError("something is computed again")

    monkeypatch.setattr(RunStore, "_make", refuse)


def test_a_project_that_is_moved_keeps_its_runs(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    first = make_project(tmp_path / "first", tiny_model)
    monkeypatch.chdir(first)
    execute(load_recipe("recipe.yaml"))
    kept = yaml.safe_load((first / "runs" / "tiny" / "recipe.yaml").read_text())
    assert kept["model"]["base"] == "../../base"
    assert kept["stream"]["tasks"][0]["train"] == "../../data/colours.train.jsonl"
    assert read_mapping(first / "runs" / "tiny" / "manifest.json")["cache_dir"] == "../.cache"
    second = tmp_path / "deeper" / "second"
    second.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    first.rename(second)
    request.getfixturevalue("without_training")
    folder = second / "runs" / "tiny"
    assert recipe_of(folder).model.base == str(second / "base")
    execute(recipe_of(folder), folder=folder)
    monkeypatch.chdir(second)
    execute(load_recipe("recipe.yaml"))


@pytest.mark.usefixtures("without_training")
def test_runs_that_are_moved_alone_find_what_stayed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    project = make_project(tmp_path / "project", tiny_model)
    monkeypatch.chdir(project)
    runs = {"runs_dir": "runs"}
    recipe = load_recipe("recipe.yaml", runs)
    claim.claim(Path("runs/tiny"), recipe)
    (project / "runs" / "tiny" / "manifest.json").write_text(f'{{"folder": "{project}/runs/tiny", "method": {{}}}}')
    (project / "runs").rename(tmp_path / "elsewhere")
    found = recipe_of(tmp_path / "elsewhere" / "tiny")
    assert found.model.base == str(project / "base")
    claim.refuse_foreign(tmp_path / "elsewhere" / "tiny", recipe)


def test_a_comparison_that_is_moved_finds_its_plan(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everlearn.runs import compare as comparison

    project = make_project(tmp_path / "first", tiny_model)
    monkeypatch.chdir(project)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(load_recipe("recipe.yaml"), seeds=[3, 4])
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "second")
    plan = planned(tmp_path / "second" / "runs" / "tiny")
    assert plan is not None
    recipe, methods, seeds = plan
    assert recipe.model.base == str(tmp_path / "second" / "base")
    assert recipe.cache_dir == str(tmp_path / "second" / "runs" / ".cache")
    assert ([method.name for method in methods], seeds) == (["sequential"], [3, 4])


def test_a_refused_run_leaves_nothing_and_a_stopped_one_its_recipe(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path / "project", tiny_model)
    (tmp_path / "project" / "data" / "places.train.jsonl").write_text("")
    with pytest.raises(UserError):
        execute(recipe)
    assert not (tmp_path / "project" / "runs").exists()
    folder = tmp_path / "project" / "runs" / "tiny"
    folder.mkdir(parents=True)
    with pytest.raises(UserError):
        execute(recipe)
    assert list(folder.iterdir()) == []

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        execute(recipe)
    assert recipe_of(folder) == recipe.model_copy(update={"seeds": []})
    other = recipe.model_copy(update={"seed": 7})
    claim.claim(folder, other)  # nothing has been computed yet
    assert recipe_of(folder).seed == 7
    (folder / "stages").mkdir()
    with pytest.raises(RunError, match="differs in seed"):
        claim.claim(folder, recipe)


def test_a_refused_update_leaves_nothing(tmp_path: Path) -> None:
    from everlearn.updates.config import UpdateRecipe
    from everlearn.updates.executor import execute as execute_update

    tree = tiny_tree(tmp_path)
    tree["versions"][1]["data"] = str(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"gone\.txt"):
        execute_update(UpdateRecipe.model_validate(tree))
    assert not (tmp_path / "runs").exists()


def test_a_run_of_versions_that_is_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everlearn.updates import executor
    from everlearn.updates.config import load_update_recipe
    from everlearn.updates.folder import recipe_of as update_recipe_of

    first, second = tmp_path / "first", tmp_path / "second"
    tree = tiny_tree(first)
    for entry in tree["versions"]:
        entry["data"] = Path(entry["data"]).name
    tree |= {"runs_dir": "runs", "cache_dir": "cache"}
    (first / "recipe.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(first)
    executor.execute(load_update_recipe("recipe.yaml"))
    monkeypatch.chdir(tmp_path)
    first.rename(second)
    folder = second / "runs" / "tiny"
    recipe = update_recipe_of(folder)
    assert recipe.versions[0].data == str(second / "text1.txt")  # type: ignore[index]
    assert recipe.cache_dir == str(second / "cache")
    executor.execute(recipe, folder=folder, progress=KilledAt(1))  # nothing is trained again
    monkeypatch.chdir(second)
    executor.execute(load_update_recipe("recipe.yaml"), progress=KilledAt(1))


def test_a_stream_made_in_python_is_not_written_over_the_one_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stream = everlearn.load_stream("embedded", train_limit=20, evaluation_limit=4).ordered(["sentiment"])
    monkeypatch.setattr(loop, "execute", lambda recipe, progress=None: recipe)
    everlearn.run(stream=stream, name="mine", seed=1)
    rows = tmp_path / "runs" / "mine" / "stream" / "sentiment.train.jsonl"
    (rows.parents[1] / "stages").mkdir()
    before = rows.read_text()
    other = everlearn.load_stream("embedded", seed=9, train_limit=20, evaluation_limit=4).ordered(["sentiment"])
    with pytest.raises(RunError, match="differs in seed"):
        everlearn.run(stream=other, name="mine", seed=2)
    assert rows.read_text() == before
