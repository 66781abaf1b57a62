"""Scoring one checkpoint outside a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.errors import ModelError
from everlearn.files import read_json
from everlearn.progress import LineProgress
from everlearn.runs.evaluation import evaluate_checkpoint
from everlearn.runs.loop import execute
from tests.runs.test_loop import tiny_recipe


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_last_stage_and_the_final_model_score_as_in_the_run(tmp_path: Path, tiny_model: Path, tuning: str) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, name=tuning)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"tuning": tuning})})
    folder = execute(recipe).folder
    stage = sorted((folder / "stages").iterdir())[-1]
    wanted = read_json(stage / "scores.json")
    assert isinstance(wanted, dict)
    for name, checkpoint in (("stage", stage / "training"), ("final", folder / "model")):
        scores = evaluate_checkpoint(recipe, checkpoint, tmp_path / name, LineProgress())
        assert {key: scores[key] for key in ("tasks", "general")} == {key: wanted[key] for key in ("tasks", "general")}


@pytest.mark.parametrize("base", ["tiny", "embedded"])
def test_general_ability_has_intervals_of_the_recipes_level(tmp_path: Path, tiny_model: Path, base: str) -> None:
    widths: dict[float, list[float]] = {}
    for confidence in (0.6, 0.99):
        recipe = tiny_recipe(
            tmp_path,
            tiny_model if base == "tiny" else Path(base),
            stream={"tasks": "embedded", "train_limit": 1, "evaluation_limit": 1},
            evaluation={"max_new_tokens": 1, "bootstrap_samples": 100, "confidence": confidence},
        )
        found = evaluate_checkpoint(recipe, None, tmp_path / str(confidence), LineProgress())["general"]
        widths[confidence] = [part["interval"][1] - part["interval"][0] for part in found.values()]
    assert len(widths[0.6]) == (1 if base == "tiny" else 2)
    assert all(narrow < wide for narrow, wide in zip(widths[0.6], widths[0.99], strict=True))


def test_a_folder_without_weights_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no safetensors: give a stage's 'training' folder"):
        evaluate_checkpoint(tiny_recipe(tmp_path, tiny_model), tmp_path / "empty", tmp_path / "out", LineProgress())
    with pytest.raises(ModelError, match=r"there is no checkpoint .*gone: give a stage's 'training' folder"):
        evaluate_checkpoint(tiny_recipe(tmp_path, tiny_model), tmp_path / "gone", tmp_path / "out", LineProgress())
