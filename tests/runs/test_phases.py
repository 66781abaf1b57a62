"""Stages of several phases and models of several parts, as the stage loop trains, keeps and hands them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from everlearn.files import read_json, read_jsonl
from everlearn.methods.base import StageContext
from everlearn.methods.registry import method_class
from everlearn.models.state import MOVING, ModelState, Tuning
from everlearn.runs.loop import execute
from everlearn.training.phase import Phase
from tests.runs.test_loop import TASKS, tiny_recipe

Plan = Callable[[StageContext], Sequence[Phase]]


@pytest.fixture
def go(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs sequential training with phases of the test's own."""

    def run(name: str, plan: Plan | None = None) -> Path:
        with monkeypatch.context() as patch:
            if plan is not None:
                patch.setattr(method_class("sequential"), "phases", lambda self, context: plan(context))
            evaluation = {"max_new_tokens": 2, "bootstrap_samples": 100, "general": False, "unseen_tasks": False}
            return execute(tiny_recipe(tmp_path, tiny_model, name=name, evaluation=evaluation)).folder

    return run


def adapter(run: Path, index: int, phase: str = "training") -> dict:
    stage = run / "stages" / f"{index:02d}-{TASKS[index - 1]}"
    return load_file(stage / phase / "adapter" / "adapter_model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_phase_starts_from_its_parent_and_has_training_settings_of_its_own(go) -> None:
    def plan(context: StageContext) -> Sequence[Phase]:
        warm = Phase("warm", changes={"epochs": 2.0, "learning_rate": 0.5}, is_released=False)
        return [warm, Phase(parent="warm", schedule=None, changes={"learning_rate": 1e-12})]

    run = go("phases", plan)
    stage = run / "stages" / f"01-{TASKS[0]}"
    history = list(read_jsonl(stage / "warm" / "history.jsonl"))
    assert (len(history), history[0]["learning_rate"]) == (6, 0.5)
    assert next(iter(read_jsonl(stage / "training" / "history.jsonl")))["learning_rate"] == 1e-12
    warm, released = adapter(run, 1, "warm"), adapter(run, 1)
    assert all((released[name] - warm[name]).abs().max() < 1e-9 for name in warm)
    steps = read_json(run / "manifest.json")["steps"]
    assert {place for place in steps if "warm" in place} == {
        f"stages/{index:02d}-{task}/warm" for index, task in enumerate(TASKS, 1)
    }


def test_what_a_stage_releases_is_the_start_of_the_next_and_what_is_handed_back(go) -> None:
    def plan(context: StageContext) -> Sequence[Phase]:
        aside = Phase("aside", changes={"learning_rate": 0.5}, is_released=False)
        return [Phase(), aside]

    run, plain = go("aside", plan), go("plain")
    for index in (1, 2, 3):
        assert same(adapter(run, index), adapter(plain, index))
        assert not same(adapter(run, index, "aside"), adapter(run, index))
    handed = [folder / "model" / "adapter_model.safetensors" for folder in (run, plain)]
    assert handed[0].read_bytes() == handed[1].read_bytes()


def test_a_shadow_beside_the_trained_adapter_changes_nothing_and_is_not_kept(go) -> None:
    def plan(context: StageContext) -> Sequence[Phase]:
        shadow = context.state.as_part("before", is_active=False)
        return [Phase(tuning=Tuning(ModelState(context.state.fingerprint, context.state.parts + shadow)))]

    run, plain = go("shadow", plan), go("plain")
    for index in (1, 2, 3):
        assert same(adapter(run, index), adapter(plain, index))


def test_a_part_that_moves_with_a_factor_of_its_own_moves_less(go) -> None:
    def plan(context: StageContext) -> Sequence[Phase]:
        return [Phase(tuning=Tuning(context.state, moves={MOVING: 1e-9}))] if context.stage.index > 1 else [Phase()]

    run = go("slow", plan)
    for index in (2, 3):
        first, later = adapter(run, 1), adapter(run, index)
        assert all((later[name] - first[name]).abs().max() < 1e-6 for name in first)
    assert not same(adapter(run, 2), adapter(run, 1))


def test_an_earlier_stage_can_be_the_start(go) -> None:
    def plan(context: StageContext) -> Sequence[Phase]:
        if context.stage.index < 3:
            return [Phase()]
        return [Phase(tuning=Tuning(context.phase_of(1, None)), changes={"learning_rate": 1e-12})]

    run = go("first", plan)
    first, third = adapter(run, 1), adapter(run, 3)
    assert all((third[name] - first[name]).abs().max() < 1e-9 for name in first)
