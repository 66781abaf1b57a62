"""The embedded translation at its smallest: a task of examples, then one after the other by reward alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from everlearn.files import read_json
from everlearn.recipe import Recipe, load_recipe
from everlearn.runs.loop import execute
from everlearn.training import policy as by_reward
from tests.killed import killed_at
from tests.methods.contexts import Told, equal_tensors

SMALL = {
    "method": "r1_t1+random_rehearsal",
    "model.device": "cpu",
    "stream.train_limit": 24,
    "stream.evaluation_limit": 2,
    "method.r1_t1.epochs": 1,
    "method.r1_t1.prompts": 8,
    "method.r1_t1.rollouts": 2,
    "method.r1_t1.max_new_tokens": 4,
    "training.epochs": 1,
    "training.checkpoint_every": 1,
    "evaluation.max_new_tokens": 4,
    "evaluation.general": False,
    "evaluation.unseen_tasks": False,
}


def small(folder: Path) -> Recipe:
    return load_recipe("translation", {**SMALL, "runs_dir": str(folder / "runs"), "cache_dir": str(folder / "cache")})


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_after_one_task_of_examples_a_run_goes_on_by_reward_and_after_a_kill_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_reward, "format_reward", lambda text, weight: len(text) % 7 / 7)  # cut completions differ
    told = Told()
    whole = execute(small(tmp_path / "whole"), progress=told)
    trained = {path.parent.relative_to(whole.folder / "stages") for path in whole.folder.rglob("history.jsonl")}
    assert sorted(map(str, trained)) == [
        "01-primer/chains",
        "01-primer/training",
        "02-tolu/training",
        "03-kesh/training",
    ]
    for name in ("01-primer", "02-tolu", "03-kesh"):
        summary = read_json(whole.folder / "stages" / name / "training" / "summary.json")
        assert isinstance(summary, dict)
        assert (summary["scorer"], summary["steps"]) == ("chrf", 1 if name == "01-primer" else 3)
    alone = [text for text in told.said if "nothing is rehearsed" in text]
    assert alone == [
        f"stage {name} is learnt by reward alone: nothing is rehearsed beside it" for name in ("02-tolu", "03-kesh")
    ]
    with killed_at(2, "training 03-kesh") as progress:
        execute(small(tmp_path / "killed"), progress=progress)
    resumed = execute(small(tmp_path / "killed"))
    assert resumed.matrix == whole.matrix
    for path in sorted(whole.folder.rglob("*.safetensors")):
        assert equal_tensors(load_file(path), load_file(resumed.folder / path.relative_to(whole.folder))), path
