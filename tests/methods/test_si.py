"""Synaptic intelligence: importance comes from the training itself, through its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from everlearn.files import read_json
from everlearn.methods.registry import make_method
from everlearn.runs.loop import execute
from everlearn.training.checkpoint import LEFT, left_by
from everlearn.training.path_integral import PathIntegral
from tests.methods.contexts import Bench, number_stream, trained
from tests.runs.test_resumed_methods import ground, tiny_recipe

__all__ = ["ground"]


def test_the_importance_of_a_stage_is_what_its_training_has_left(tmp_path: Path, ground: Path) -> None:
    folder = execute(tiny_recipe("si", ground, tmp_path)).folder
    first, last = sorted(path for path in (folder / "stages").iterdir() if path.name[:2] in ("01", "02"))
    left = left_by(PathIntegral, first / "training")
    kept = load_file(first / "state" / "state.safetensors")
    assert len(kept) == 2 * len(left) > 0
    for name, values in left.items():
        assert np.array_equal(kept[f"importance/{name}"], values.clip(min=0))
        assert np.abs(values).max() > 0
    assert load_file(last / "state" / "state.safetensors") == {}
    told = [read_json(stage / "training" / "summary.json")["influence_seconds"] for stage in (first, last)]  # type: ignore[index, call-overload]
    assert [list(one) for one in told] == [["si"], ["si"]]
    assert min(one["si"] for one in told) > 0
    assert "mean_importance" in (last / "training" / "history.jsonl").read_text().splitlines()[0]


@pytest.mark.parametrize(("clamp", "expected"), [(True, [2.0, 0.0]), (False, [2.0, -3.0])])
def test_stages_add_up_and_what_raised_the_loss_counts_for_nothing_or_against(
    clamp: bool, expected: list[float], tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("si", {"clamp": clamp})
    for stage in method.stages(number_stream())[:2]:
        context = trained(method, bench.context(stage), bench.latest.model)
        assert context.state.folder is not None
        left = {name: values * 0 for name, values in load_file(context.state.folder / LEFT).items()}
        for values in left.values():
            values.flat[:2] = (1.0, -1.5)
        save_file(left, context.state.folder / LEFT)
        method.after_stage(context)
    kept = method.state_tensors()
    assert {tuple(v.flat[:2]) for key, v in kept.items() if key.startswith("importance/")} == {tuple(expected)}


def test_the_first_stage_has_a_path_to_follow_and_later_ones_a_pull_as_well(tmp_path: Path, tiny_model: Path) -> None:
    method = make_method("si", {})
    bench = Bench(tmp_path, tiny_model)
    found = [method.influences(bench.context(stage)) for stage in method.stages(number_stream())]
    assert [[type(one).__name__ for one in several] for several in found] == [
        ["PathIntegral"],
        ["PathIntegral", "Pull"],
        ["PathIntegral", "Pull"],
    ]
