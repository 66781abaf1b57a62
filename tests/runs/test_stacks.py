"""Runs of stacked methods: what each does alone adds up, is kept below its name, and survives a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from everlearn.data.mixture import shuffled
from everlearn.data.prompts import get_template
from everlearn.data.stream import load_stream
from everlearn.files import read_json, read_jsonl, read_vouched
from everlearn.methods.registry import make_method
from everlearn.models.loading import load_model
from everlearn.progress import LineProgress
from everlearn.recipe import Recipe, make_recipe
from everlearn.report.facts.study import read_study
from everlearn.report.html import write_report
from everlearn.runs.claim import recipe_of
from everlearn.runs.compare import compare, parse_methods
from everlearn.runs.loop import execute
from everlearn.seeds import derive
from everlearn.training import stage as trainer
from everlearn.training.quadratic_penalty import Pull, values_of
from tests.runs.test_loop import tiny_recipe

METHOD = [{"name": "random_rehearsal", "ratio": 0.5}, {"name": "l2", "strength": 3.0}]
LABEL = "random_rehearsal+l2"
SECOND = "stages/02-animals/training"


def small(folder: Path, model: Path, **sections: Any) -> Recipe:
    """Two tasks, and little to measure."""
    tree = tiny_recipe(folder, model).model_dump(mode="json")
    tree["stream"]["tasks"] = tree["stream"]["tasks"][:2]
    tree["evaluation"] |= {"general": False, "unseen_tasks": False, "max_new_tokens": 2}
    return make_recipe({**tree, **sections})


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder of a run of two stacked methods."""
    return execute(small(tmp_path_factory.mktemp("stacked"), tiny_model, method=METHOD)).folder


def course(folder: Path) -> list[dict[str, object]]:
    return [{key: row[key] for key in row if key != "seconds"} for row in read_jsonl(folder / "history.jsonl")]


def test_a_stage_is_trained_with_the_rows_of_the_one_and_the_penalty_of_the_other(
    stacked: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(stacked)
    tasks = load_stream(recipe.stream, seed=recipe.seed).tasks
    kept = load_model(recipe.model, checkpoint=stacked / "stages/01-colours/training")
    anchors = values_of(kept.model)
    seed = derive(recipe.seed, "stage-2", "training")
    loaded = load_model(recipe.model, checkpoint=stacked / "stages/01-colours/training", trainable=True, seed=seed)
    trainer.train_stage(
        loaded,
        tasks[1].train,
        recipe.training,
        get_template(recipe.model.template, loaded.tokenizer),
        seed=seed,
        folder=tmp_path,
        progress=LineProgress(),
        what="",
        mixture=shuffled("random_rehearsal", tasks[0].train[: len(tasks[0].train) // 2]),
        influences=[Pull(3.0, anchors)],
    )
    rows = course(tmp_path)
    assert rows == course(stacked / SECOND)
    assert rows[-1]["penalty"] > 0  # type: ignore[operator]


def test_manifest_state_and_report_say_whose_is_what(stacked: Path) -> None:
    manifest = read_vouched(stacked / "manifest.json")
    assert manifest["label"] == LABEL
    assert manifest["method"] == {
        "name": LABEL,
        "title": "random rehearsal+L2",
        "traits": ["penalty", "rehearses"],
        "options": {"random_rehearsal": {"ratio": 0.5, "draw": "published"}, "l2": {"strength": 3.0}},
    }
    state = stacked / "stages/01-colours/state"
    assert read_json(state / "state.json") == {"random_rehearsal": {}, "l2": {}}
    assert all(name.startswith("l2/") for name in load_file(state / "state.safetensors"))
    card = (stacked / "model" / "README.md").read_text()
    assert "- random_rehearsal\n- l2\n" in card
    assert read_study(stacked).methods[0].title == "random rehearsal+L2"
    assert "random rehearsal+L2" in write_report(stacked).read_text()


def test_a_stopped_stack_goes_on_to_the_same_weights_and_does_nothing_twice(
    stacked: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(tmp_path, tiny_model, method=METHOD)
    train = trainer.train_stage

    def stopped(*given: Any, **how: Any) -> object:
        if "animals" in how["what"]:
            raise KeyboardInterrupt
        return train(*given, **how)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_stage", stopped)
        with pytest.raises(KeyboardInterrupt):
            execute(recipe)
    folder = Path(recipe.runs_dir) / recipe.name
    again = execute(recipe_of(folder))
    assert course(folder / SECOND) == course(stacked / SECOND)
    assert again.matrix == read_vouched(stacked / "matrix.json")
    monkeypatch.setattr(trainer, "train_stage", stopped)
    assert execute(recipe_of(folder)).matrix == again.matrix


def test_a_stack_of_one_is_stored_as_that_method(tmp_path: Path, tiny_model: Path) -> None:
    alone = small(tmp_path, tiny_model, method={"name": "l2", "strength": 3.0})
    assert small(tmp_path, tiny_model, method=METHOD[1:]) == alone
    assert alone.model_dump(mode="json")["method"] == {"name": "l2", "strength": 3.0}
    assert make_method("l2", {}).described() == {"strength": 0.1}


def test_stacks_are_compared_by_their_names_and_the_options_that_differ(tmp_path: Path, tiny_model: Path) -> None:
    recipe = small(tmp_path, tiny_model, method=METHOD)
    methods = parse_methods(f"{LABEL},{LABEL}:l2.strength=0,random_rehearsal", recipe)
    results = compare(recipe, methods)
    labels = [f"{LABEL} l2.strength=3.0", f"{LABEL} l2.strength=0", "random_rehearsal"]
    names = [f"{LABEL}-l2.strength-3.0-s42", f"{LABEL}-l2.strength-0-s42", "random_rehearsal-s42"]
    assert list(results) == labels
    assert [result.folder.name for (result,) in results.values()] == names
    folder = Path(recipe.runs_dir) / recipe.name
    found = read_vouched(folder / "comparison.json")["runs"]
    assert found[1]["method"] == LABEL
    assert found[1]["options"] == {"random_rehearsal": {"ratio": 0.5}, "l2": {"strength": 0}}
    assert [recipe_of(folder / name).name for name in names] == names
    titles = [method.title for method in read_study(folder).methods]
    assert titles[0] == "random rehearsal+L2 l2.strength=3.0"
    without = [[row["loss"] for row in course(folder / name / SECOND)] for name in names]
    assert without[1] == without[2], "a penalty of no strength changes nothing"
    assert without[0] != without[2]
