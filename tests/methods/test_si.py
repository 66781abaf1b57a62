"""Synaptic intelligence: importance comes from the training itself, through its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everlearn.methods.registry import make_method
from everlearn.recipe import MethodConfig
from everlearn.runs.loop import execute
from everlearn.training.checkpoint import left_by
from everlearn.training.path_integral import PathIntegral
from tests.runs.test_resumed_methods import ground, tiny_recipe

__all__ = ["ground"]


@pytest.mark.parametrize("clamp", [True, False])
def test_the_importance_of_a_stage_is_what_its_training_has_left(clamp: bool, tmp_path: Path, ground: Path) -> None:
    from safetensors.numpy import load_file

    method = MethodConfig(name="si", clamp=clamp, strength=50.0)
    folder = execute(tiny_recipe("si", ground, tmp_path).model_copy(update={"method": method})).folder
    stage = next(path for path in (folder / "stages").iterdir() if path.name.startswith("01"))
    left = left_by(PathIntegral, stage / "training")
    kept = load_file(stage / "state" / "state.safetensors")
    assert min(values.min() for values in left.values()) < 0, "there is something to clamp"
    for name, values in left.items():
        expected = values.clip(min=0) if clamp else values
        assert np.array_equal(kept[f"importance/{name}"], expected)
        assert kept[f"anchor/{name}"].shape == values.shape
    last = next(path for path in (folder / "stages").iterdir() if path.name.startswith("02"))
    assert load_file(last / "state" / "state.safetensors") == {}
    assert "mean_importance" in (last / "training" / "history.jsonl").read_text().splitlines()[0]


def test_the_first_stage_has_a_path_to_follow_and_later_ones_a_pull_as_well(tmp_path: Path, tiny_model: Path) -> None:
    from tests.methods.contexts import Bench, number_stream

    method = make_method("si", {})
    bench = Bench(tmp_path, tiny_model)
    found = [method.influences(bench.context(stage)) for stage in method.stages(number_stream())]
    assert [[type(one).__name__ for one in several] for several in found] == [
        ["PathIntegral"],
        ["PathIntegral", "Pull"],
        ["PathIntegral", "Pull"],
    ]
