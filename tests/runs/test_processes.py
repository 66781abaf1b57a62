"""A run in two processes has the losses and predictions of one, and another number goes on with what it has left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from everlearn.files import read_json
from everlearn.recipe import Recipe
from everlearn.runs.loop import execute
from tests.runs.test_loop import TASKS, tiny_recipe

STAGES = [f"{at:02d}-{task}" for at, task in enumerate(TASKS, 1)]


def recipe_of_two(folder: Path, model: Path) -> Recipe:
    """Steps of 11 rows and of 1, which leaves one of two processes without any; and a penalty."""
    recipe = tiny_recipe(
        folder,
        model,
        method={"name": "ewc", "strength": 100.0},
        training={"epochs": 2, "batch_size": 11, "learning_rate": 1e-2, "checkpoint_every": 2, "precision": "float32"},
        evaluation={"max_new_tokens": 6, "bootstrap_samples": 100, "general": False},
    )
    lora = recipe.model.lora.model_copy(update={"dropout": 0.0})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "float32", "lora": lora})})


def launch(recipe: Recipe, folder: Path, *start: str) -> subprocess.CompletedProcess[str]:
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
            [(row["loss"], row.get("penalty", 0.0)) for row in rows_of(folder, f"{stage}/training/history.jsonl")]
            for folder in (run, other)
        )
        assert len(losses) == 4
        assert [loss for row in found for loss in row] == pytest.approx(
            [loss for row in losses for loss in row], abs=1e-5
        )
        for task in TASKS:
            answers, found_answers = (
                [row["prediction"] for row in rows_of(folder, f"{stage}/predictions/{task}/predictions.jsonl")]
                for folder in (run, other)
            )
            assert answers == found_answers
            assert len(answers) == 4


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
