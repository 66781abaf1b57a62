"""A run in two processes has the losses and predictions of one, and another number goes on with what it has left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from everlearn.crew import Crew
from everlearn.errors import RecipeError, RunError, UserError
from everlearn.files import read_json, read_mapping
from everlearn.recipe import Recipe
from everlearn.runs import work
from everlearn.runs.claim import refuse_foreign
from everlearn.runs.loop import execute
from tests.runs.test_loop import TASKS, tiny_recipe

STAGES = [f"{at:02d}-{task}" for at, task in enumerate(TASKS, 1)]


EWC = {"name": "ewc", "strength": 100.0}


def recipe_of_two(
    folder: Path, model: Path, method: object = EWC, *, tuning: str = "lora", sharding: str = "none"
) -> Recipe:
    """Steps of 11 rows and of 1, which leaves one of two processes without any; and a penalty."""
    training = {"epochs": 2, "batch_size": 11, "learning_rate": 1e-2 if tuning == "lora" else 1e-3}
    recipe = tiny_recipe(
        folder,
        model,
        method=method,
        training={**training, "checkpoint_every": 2, "precision": "float32", "sharding": sharding},
        evaluation={"max_new_tokens": 6, "bootstrap_samples": 100},
    )
    lora = recipe.model.lora.model_copy(update={"dropout": 0.0})
    changes = {"dtype": "float32", "lora": lora, "tuning": tuning}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def launch(recipe: Recipe, folder: Path, *start: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [*(start or ("-m", "everlearn")), "run", str(folder / "recipe.yaml"), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def rows_of(run: Path, place: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stages" / place).read_text().splitlines()]


def assert_same(run: Path, other: Path) -> None:
    for stage in STAGES:
        losses, found = (
            [row | {"seconds": 0.0} for row in rows_of(folder, f"{stage}/training/history.jsonl")]
            for folder in (run, other)
        )
        assert len(losses) == 4
        for row, found_row in zip(losses, found, strict=True):
            assert found_row.keys() == row.keys()
            for key, value in row.items():
                within = 1e-6 if key in ("loss", "penalty", "term") else 1e-3
                assert found_row[key] == pytest.approx(value, abs=1e-5, rel=within), key
        for task in TASKS:
            answers, found_answers = (
                [row["prediction"] for row in rows_of(folder, f"{stage}/predictions/{task}/predictions.jsonl")]
                for folder in (run, other)
            )
            assert answers == found_answers
            assert len(answers) == 4
        perplexities = [
            read_mapping(folder / f"stages/{stage}/general/scores.json")["perplexity"]["value"]
            for folder in (run, other)
        ]
        assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return execute(recipe_of_two(tmp_path_factory.mktemp("alone"), tiny_model)).folder


def test_two_processes_give_the_losses_and_predictions_of_one(tmp_path: Path, tiny_model: Path, alone: Path) -> None:
    recipe = recipe_of_two(tmp_path, tiny_model)
    done = launch(recipe, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Report:") == 1
    run = tmp_path / "runs" / "tiny"
    assert_same(alone, run)
    manifest = read_json(run / "manifest.json")
    assert manifest["machine"]["processes"] == 2  # type: ignore[index, call-overload]
    assert manifest["status"] == "complete"  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("tuning", "method"),
    [("lora", {"name": "lwf"}), ("full", [{"name": "ewc", "strength": 1.0}, {"name": "lcia", "groups": False}])],
    ids=["frozen layers and whole adapters", "all weights"],
)
def test_two_processes_that_share_the_weights_give_the_losses_and_predictions_of_one(
    tmp_path: Path, tiny_model: Path, tuning: str, method: object
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = execute(recipe_of_two(one, tiny_model, method, tuning=tuning)).folder
    done = launch(recipe_of_two(two, tiny_model, method, tuning=tuning, sharding="fsdp"), two)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(alone, two / "runs" / "tiny")


@pytest.mark.parametrize("switches", [{"preset": "seq_lin"}, {"warmup_target": "classes"}], ids=["moving", "frozen"])
def test_two_processes_train_heads_as_one(tmp_path: Path, tiny_model: Path, switches: dict[str, object]) -> None:
    recipes = []
    for place in ("one", "two"):
        recipe = recipe_of_two(tmp_path / place, tiny_model, {"name": "seq", "head_learning_rate": 0.05, **switches})
        stream = recipe.stream.model_copy(update={"scenario": "class_incremental"})
        recipes.append(recipe.model_copy(update={"stream": stream}))
    alone = execute(recipes[0]).folder
    done = launch(recipes[1], tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(alone, tmp_path / "two" / "runs" / "tiny")


def test_weights_are_not_shared_by_one_process_nor_with_a_method_that_needs_them_whole(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of_two(tmp_path, tiny_model, {"name": "gem"}, tuning="full", sharding="fsdp")
    with pytest.raises(
        RecipeError, match=r"training\.sharding: fsdp leaves each of several .* and this is one: start"
    ):
        execute(recipe)
    monkeypatch.setattr("everlearn.crew._crew", Crew(count=2))
    with pytest.raises(RecipeError, match=r"method gem needs whole weights .* set model\.tuning to lora"):
        execute(recipe)


def test_a_run_of_whole_weights_does_not_go_on_with_shared_ones(tmp_path: Path, tiny_model: Path, alone: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(alone, run)
    recipe = recipe_of_two(tmp_path, tiny_model, sharding="fsdp")
    with pytest.raises(
        RunError, match=r"another recipe \(it differs in .*training\.sharding\): choose another --name"
    ):
        refuse_foreign(run, recipe)


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from everlearn.cli.main import main
from everlearn.progress import LineProgress
from everlearn.runs import work

class Killing(LineProgress):
    @contextmanager
    def step(self, what, total=None):
        def tick(done, *_, **__):
            if what == "training 02-animals" and done == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        yield tick

work.LineProgress = Killing  # what the second process shows nothing by
sys.exit(main())
"""


def test_one_process_goes_on_after_one_of_two_was_killed_in_the_midst_of_a_stage(
    tmp_path: Path, tiny_model: Path, alone: Path
) -> None:
    recipe = recipe_of_two(tmp_path, tiny_model)
    (tmp_path / "killed.py").write_text(KILLED)
    done = launch(recipe, tmp_path, str(tmp_path / "killed.py"))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("everlearn: ")]
    assert len(said) == 1, done.stderr[-3000:]
    assert "finished steps are kept" in said[0].lower()
    assert list((tmp_path / "runs").rglob("partial-00000002")), "a checkpoint of two processes"
    assert_same(alone, execute(recipe).folder)


def test_processes_that_have_loaded_other_weights_are_refused() -> None:
    with pytest.raises(UserError, match=r"process 2 of the launch has loaded other weights than the first one: on"):
        work._refuse_other_weights(["a", "a", "b"])
    work._refuse_other_weights(["a", "a"])
