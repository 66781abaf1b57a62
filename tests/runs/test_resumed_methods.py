"""Every method, killed in the midst of training its last stage and resumed, ends where it would have ended.

Activations are recomputed, under which a weight of another view of the model would be left without a gradient.

New methods are picked up by themselves; only where defaults cannot run at this size has a method options here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from everlearn.errors import UserError
from everlearn.files import read_json, read_jsonl, write_jsonl
from everlearn.methods.registry import method_names
from everlearn.recipe import Recipe, make_recipe
from everlearn.runs.loop import execute
from tests.conftest import make_tiny_model
from tests.killed import killed_at
from tests.methods.contexts import equal_tensors
from tests.tiny_models import RANDOM_SSR

TASKS = ("colours", "animals")
OPTIONS: dict[str, dict[str, object]] = {
    "der": {"capacity": 4, "memory_batch": 2},
    "ewc": {"fisher_rows": 4},
    "gere": {"count": 3, "max_tokens": 12},
    "mas": {"rows": 4},
    "kmeans_rehearsal": {"ratio": 0.5, "clusters": 2},
    "lamol": {"gamma": 0.2, "max_new_tokens": 40},
    "moelora": {"experts": 2},
    "r1_t1": {"wording": "plain", "epochs": 0},
    "progressive_prompts": {"tokens": 3},
    "random_rehearsal": {"ratio": 0.5},
    "sers": {
        "preset": "faithful",
        "selection": "random",
        "max_new_tokens": 40,
        "ratio": 0.1,
        "minimum": 0,
        "refinement_tokens": 4,
        "reference": "base",
        "mixture": "probabilities",
        "hard_ratio": 1,
        "counted": "new",
        "pull_to": "previous",
    },
    "ssr": {**RANDOM_SSR, "max_new_tokens": 40, "ratio": 0.1, "refinement_tokens": 4},
}
MODELS = {"osf": {"tuning": "full"}}
"""Where a method does without adapters."""
STREAMS = {"seq": {"scenario": "class_incremental"}}
"""Where a method needs more than tasks; it leaves the layers beneath its heads as the first stage has made them."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the marks of synthesis, and the rows of two tasks."""
    folder = tmp_path_factory.mktemp("ground")
    texts = []
    for task in TASKS:
        for kind, count in (("train", 16), ("evaluation", 3)):
            rows = [
                {
                    "instruction": f"Say the {task}.",
                    "input": f"{kind} thing {at}",
                    "output": f"{task} {at % 3}",
                    "walk": f"{at} by 3",
                }
                for at in range(count)
            ]
            texts += [f"{row['instruction']} Input: {row['input']} Output: {row['output']}" for row in rows]
            write_jsonl(folder / f"{task}.{kind}.jsonl", rows)
    make_tiny_model(folder / "model", "llama", texts, marks=("Input:", "Output:"))
    return folder


def tiny_recipe(name: str, ground: Path, folder: Path) -> Recipe:
    parts = ("train", "evaluation")
    tasks = [
        {"name": task, "demonstrations": 3, **{kind: str(ground / f"{task}.{kind}.jsonl") for kind in parts}}
        for task in TASKS
    ]
    return make_recipe(
        {
            "name": name,
            "runs_dir": str(folder),
            "model": {"base": str(ground / "model"), "device": "cpu", "lora": {"rank": 2}, **MODELS.get(name, {})},
            "stream": {"tasks": tasks, **STREAMS.get(name, {})},
            "method": {"name": name, **OPTIONS[name]} if name in OPTIONS else name,
            "training": {
                "epochs": 1,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "checkpoint_every": 1,
                "gradient_checkpointing": True,
            },
            "evaluation": {"max_new_tokens": 4, "general": False, "bootstrap_samples": 100},
        }
    )


def assert_every_weight_moves(folder: Path) -> None:
    """From the first stage to the last, of the layers that all methods train; and what is new of those that grow."""
    stages = [load_file(path) for path in sorted(folder.glob("stages/*/training/*/*model.safetensors"))]
    for name, before in stages[0].items():
        after = stages[-1][name]
        if "_proj" not in name or len(stages) == 1:
            continue
        if before.shape == after.shape:
            assert (after != before).any(), name
        elif "lora_B" in name:
            assert after[:, before.shape[1] :].any(axis=0).all(), name


def hold_to_plan(folder: Path) -> None:
    """The run has trained as many steps as were planned, or fewer where models have written fewer rows."""
    manifest: Any = read_json(folder / "manifest.json")
    for stage in manifest["stages"]:
        planned = [part for part in manifest["plan"]["parts"] if part["stage"] == stage["name"]]
        if any("heads" in part["kind"] for part in planned):
            continue
        trained: list[Any] = [read_json(path) for path in folder.glob(f"stages/{stage['name']}/*/summary.json")]
        steps = sum(part["steps"] for part in planned)
        tokens = sum(part["trained_tokens"] for part in planned)
        spent = sum(summary["steps"] for summary in trained), sum(summary["tokens"] for summary in trained)
        if "synthesizes" in manifest["method"]["traits"]:
            assert spent[0] <= steps
        else:
            assert spent[0] == steps
            assert 0.7 * tokens <= spent[1] <= 1.05 * tokens, "memories fill up, and a base may end its texts early"


@pytest.mark.parametrize("name", [*method_names(), "experience_replay+agem"])
def test_a_method_killed_within_its_last_stage_ends_with_equal_scores_weights_and_state(
    name: str, tmp_path: Path, ground: Path
) -> None:
    whole = execute(tiny_recipe(name, ground, tmp_path / "whole"))
    if name not in STREAMS:
        assert_every_weight_moves(whole.folder)
    hold_to_plan(whole.folder)
    recipe = tiny_recipe(name, ground, tmp_path / "killed")
    last = read_json(whole.folder / "manifest.json")["stages"][-1]["name"]  # type: ignore[call-overload, index]
    with killed_at(2, f"training {last}") as progress:
        execute(recipe, progress=progress)
    assert list((tmp_path / "killed").rglob("partial-*")), "there is a checkpoint to go on from"
    resumed = execute(recipe)
    assert (resumed.matrix, resumed.metrics) == (whole.matrix, whole.metrics)
    for path in sorted(whole.folder.rglob("*.safetensors")):
        there = resumed.folder / path.relative_to(whole.folder)
        assert equal_tensors(load_file(path), load_file(there)), path
    for path in sorted(whole.folder.rglob("history.jsonl")):
        rows = [list(read_jsonl(folder / path.relative_to(whole.folder))) for folder in (whole.folder, resumed.folder)]
        assert [{**row, "seconds": 0} for row in rows[0]] == [{**row, "seconds": 0} for row in rows[1]]


@pytest.mark.parametrize("name", method_names())
def test_a_method_trains_all_weights_as_well_or_says_that_it_cannot(name: str, tmp_path: Path, ground: Path) -> None:
    recipe = tiny_recipe(name, ground, tmp_path)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"tuning": "full"})})
    try:
        folder = execute(recipe).folder
    except UserError as refusal:
        assert re.search(f"method {name}.*(full|lora)", str(refusal))  # noqa: PT017
        return
    assert (folder / "model" / "model.safetensors").exists()
