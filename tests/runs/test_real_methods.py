"""Every method learns two real tasks (Super-NaturalInstructions) in turn, with LoRA and with full tuning.

Four tiny random models take turns: each method meets two architectures, one with each tuning, and each architecture
meets every fourth method with either. Scores mean nothing here; that all steps work on them is what is tested. New
methods are taken in by themselves, with the options that `test_resumed_methods` has for them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from everlearn.errors import UserError
from everlearn.files import read_jsonl
from everlearn.methods.registry import method_names
from everlearn.recipe import make_recipe
from everlearn.runs.loop import RunResult, execute
from tests.conftest import ARCHITECTURES, make_tiny_model
from tests.runs.test_real_data import slice_of
from tests.runs.test_resumed_methods import OPTIONS, STREAMS

TASKS = ("sa", "trans")
WITH_WALKS = ("r1_t1",)
"""Methods of rows that these data do not have."""


@pytest.fixture(scope="module")
def ground(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows, and a model of each architecture; runs share a cache, so what they have in common is made once."""
    folder = tmp_path_factory.mktemp("real")
    tasks = slice_of(shared_dir, folder, TASKS, train=12, evaluation=2)
    texts = [str(row["full_prompt"]) for task in tasks for row in read_jsonl(Path(str(task["train"])))]
    for architecture in ARCHITECTURES:
        make_tiny_model(folder / architecture, architecture, texts, marks=("Input:", "Output:"))
    return {"folder": folder, "tasks": tasks}


def run(name: str, tuning: str, architecture: str, ground: dict[str, Any]) -> RunResult:
    folder: Path = ground["folder"]
    recipe = {
        "name": f"{name}-{tuning}-{architecture}",
        "runs_dir": str(folder / "runs"),
        "model": {"base": str(folder / architecture), "device": "cpu", "tuning": tuning, "lora": {"rank": 2}},
        "stream": {"tasks": ground["tasks"]},
        "method": {"name": name, **OPTIONS.get(name, {})},
        "training": {"epochs": 1, "batch_size": 4},
        "evaluation": {"max_new_tokens": 2, "bootstrap_samples": 100, "unseen_tasks": False, "general": False},
    }
    return execute(make_recipe(recipe))


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("name", [name for name in method_names() if name not in (*STREAMS, *WITH_WALKS)])
def test_a_method_learns_real_tasks_in_turn(name: str, tuning: str, ground: dict[str, Any]) -> None:
    first = method_names().index(name) + 2 * (tuning == "full")
    refusals = []
    for architecture in [ARCHITECTURES[(first + turn) % len(ARCHITECTURES)] for turn in range(len(ARCHITECTURES))]:
        try:
            result = run(name, tuning, architecture, ground)
        except UserError as refusal:  # of the tuning, or of a layer that this architecture has
            refusals.append(str(refusal))
            assert re.search(f"method {name}", refusals[-1])
            continue
        assert result.matrix["tasks"] == list(TASKS)
        last = result.matrix["values"][-1]  # type: ignore[index]
        assert None not in last, "each task was answered after the last stage"
        weights = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
        assert (result.folder / "model" / weights).exists()
        return
    assert len(refusals) == len(ARCHITECTURES)
    assert all(re.search("full|lora|adapter", refusal) for refusal in refusals)
