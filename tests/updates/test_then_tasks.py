"""What comes after: a released version is the base of task tuning, as it is."""

from __future__ import annotations

from pathlib import Path

from everlearn.recipe import make_recipe
from everlearn.runs.loop import execute as run_tasks
from everlearn.updates.executor import execute as run_updates
from tests.runs.test_loop import write_tasks
from tests.updates.tiny_runs import MODEL, tiny_recipe


def test_a_released_version_goes_straight_into_task_tuning(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "updates", model={"config": {**MODEL, "max_position_embeddings": 128}}, versions=2)
    run_updates(recipe)
    release = tmp_path / "updates" / "runs" / "tiny" / "releases" / "v2"
    tree = {
        "runs_dir": str(tmp_path / "runs"),
        "model": {"base": str(release), "lora": {"rank": 2}},
        "stream": {"tasks": write_tasks(tmp_path / "tasks")[:2]},
        "method": "sequential",
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"max_new_tokens": 4, "bootstrap_samples": 100, "general": False},
    }
    result = run_tasks(make_recipe(tree))
    assert len(result.matrix["values"]) == 2
    assert (result.folder / "model").is_dir()
