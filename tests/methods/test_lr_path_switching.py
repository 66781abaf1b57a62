"""Path switching on tasks: the plan of each stage, its rates, and that the main path is one training."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.errors import RecipeError
from everlearn.files import read_json, read_jsonl
from everlearn.methods.registry import make_method
from everlearn.models.state import MOMENTS
from everlearn.report.facts.reading import read_run
from everlearn.report.sections.curves import loss_of
from everlearn.runs.loop import execute
from everlearn.training.phase import check_phases
from tests.methods.contexts import Bench, number_stream
from tests.runs.test_loop import TASKS, tiny_recipe

PLAIN = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2}


def plan(bench: Bench, index: int, steps: int, training: dict | None = None, *, count: int = 3, **options: object):
    """The phases of a stage of so many stages."""
    method = make_method("lr_path_switching", options)
    stage = replace(method.stages(number_stream())[0], index=index, is_last=index == count)
    context = replace(bench.context(stage), order=[[0]] * steps)
    context = replace(context, training=context.training.model_copy(update=training or {}))
    phases = method.phases(context)
    check_phases(phases)
    return phases


def golden(golden_dir: Path, name: str) -> list[dict]:
    return json.loads((golden_dir / "lr_path_switching" / name).read_text())


def test_a_stage_is_a_main_path_a_branch_and_where_another_follows_a_tail(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    for index in (1, 2, 3):
        phases = plan(bench, index, 10)
        assert [phase.name for phase in phases] == ["main", "training", "tail"][: 2 if index == 3 else 3]
        assert [phase.steps for phase in phases] == [(0, 4), (4, 10), (4, 10)][: len(phases)]
        assert [phase.is_released for phase in phases] == [False, True, False][: len(phases)]
        assert [phase.parent for phase in phases] == [None, "main", "main"][: len(phases)]
        assert [phase.moments for phase in phases] == ["fresh" if index == 1 else "inherit", "inherit", "inherit"][
            : len(phases)
        ]
        start = f"latest-{index}" if index == 1 else f"phase-{index - 1}-tail"
        assert phases[0].tuning.start.fingerprint == start


@pytest.mark.parametrize(("scheduler", "floor"), [("cosine", 0.1), ("linear", 0.0)])
def test_the_branch_falls_completely_from_the_full_rate_at_which_the_main_path_stays(
    tmp_path: Path, tiny_model: Path, scheduler: str, floor: float
) -> None:
    main, branch, tail = plan(
        Bench(tmp_path, tiny_model), 1, 40, {"scheduler": scheduler, "warmup_ratio": 0.1}, branch_fraction=0.3
    )
    rates = [branch.schedule(step) for step in range(13)]
    assert rates[0] == 1.0
    assert rates[12] == pytest.approx(floor)
    assert all(a > b for a, b in pairwise(rates))
    assert [main.schedule(step) for step in (0, 2, 4, 27)] == [0.0, 0.5, 1.0, 1.0]
    assert {tail.schedule(step) for step in range(12)} == {1.0}
    later = plan(Bench(tmp_path, tiny_model), 2, 40, {"warmup_ratio": 0.1})[0]
    assert later.schedule(0) == 1.0  # the rate rises once


def test_the_golden_plan_for_versions_is_the_plan_for_stages(tmp_path, tiny_model, golden_dir: Path) -> None:
    bench, compared = Bench(tmp_path, tiny_model), 0
    for case in golden(golden_dir, "plans.json"):
        if (case["paradigm"], case["placement"], case["lazy"]) != ("path_switching", "overlap", True):
            continue
        found = []
        for index, steps in enumerate(case["T"], 1):
            before = sum(case["T"][: index - 1])
            for phase in plan(bench, index, steps, count=len(case["T"]), branch_fraction=case["alpha"]):
                name = {"main": f"m{index}a", "training": f"b{index}", "tail": f"m{index}b"}[phase.name]
                found.append((name, *(before + step for step in phase.steps)))
        assert found == [(one["id"], one["from"], one["to"]) for one in case["segments"]]
        compared += 1
    assert compared


def test_every_golden_rate_of_a_released_model_is_met(tmp_path, tiny_model, golden_dir: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    for case in golden(golden_dir, "trajectory.json"):
        training = {"warmup_ratio": case["W"] / case["T"][0]}
        options = {"branch_fraction": case["alpha"], "minimal_ratio": case["r"]}
        path: list[float] = []  # rates of the main path so far
        for index, (steps, version) in enumerate(zip(case["T"], case["versions"], strict=True), 1):
            phases = plan(bench, index, steps, training, count=len(case["T"]), **options)
            rates = [
                [case["eta_max"] * phase.schedule(at) for at in range(phase.steps[1] - phase.steps[0])]
                for phase in phases
            ]
            assert [*path, *rates[0], *rates[1]] == pytest.approx(version["lr"], rel=1e-9)
            path += [*rates[0], *(rates[2] if len(rates) == 3 else [])]


def test_a_branch_of_all_steps_leaves_no_main_path_before_it(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    first, later = plan(bench, 1, 5, branch_fraction=1.0), plan(bench, 2, 5, branch_fraction=1.0)
    assert [phase.name for phase in first] == ["training", "tail"]
    assert {phase.moments for phase in first} == {"fresh"}
    assert {phase.moments for phase in later} == {"inherit"}
    assert {phase.tuning.start.fingerprint for phase in later} == {"phase-1-tail"}
    assert plan(bench, 2, 5, branch_optimizer="reset")[1].moments == "fresh"


def test_a_branch_inside_the_warm_up_and_a_rate_that_does_not_decay_are_refused(tmp_path, tiny_model) -> None:
    bench = Bench(tmp_path, tiny_model)
    with pytest.raises(RecipeError, match="start at step 4 of 10, inside the warm-up of 5 steps"):
        plan(bench, 1, 10, {"warmup_ratio": 0.5})
    with pytest.raises(RecipeError, match=r"training\.scheduler is constant"):
        execute(
            tiny_recipe(tmp_path, tiny_model, method="lr_path_switching", training={**PLAIN, "scheduler": "constant"})
        )


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_main_path_goes_through_all_stages_as_one_training_and_a_resumed_run_makes_nothing_again(
    tmp_path: Path, tiny_model: Path, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import everlearn.training.stage as trainer

    recipe = tiny_recipe(tmp_path, tiny_model, method="lr_path_switching", training=PLAIN)
    model = recipe.model.model_copy(update={"tuning": tuning})
    evaluation = recipe.evaluation.model_copy(update={"general": False, "unseen_tasks": False})
    recipe = recipe.model_copy(update={"model": model, "evaluation": evaluation})
    folder = execute(recipe).folder
    stages = [folder / "stages" / f"{index:02d}-{task}" for index, task in enumerate(TASKS, 1)]
    inner = "adapter/adapter_model.safetensors" if tuning == "lora" else "model/model.safetensors"
    for stage, phases in zip(stages, [("main", "training", "tail")] * 2 + [("main", "training")], strict=True):
        found = {path.name for path in stage.iterdir() if (path / "history.jsonl").exists()}
        assert found == set(phases)
        assert not (stage / "training" / MOMENTS).exists()
        rows = {name: list(read_jsonl(stage / name / "history.jsonl")) for name in phases}
        assert {row["learning_rate"] for row in [*rows["main"], *rows.get("tail", [])]} == {1e-2}
        assert [len(rows[name]) for name in phases] == [1, 2, 2][: len(phases)]
        if "tail" in rows:  # both see the same rows; the first step starts from the same weights at the same rate
            assert rows["training"][0]["loss"] == rows["tail"][0]["loss"]
    moments = load_file(stages[1] / "tail" / MOMENTS)
    assert {float(value) for name, value in moments.items() if name.endswith(".step")} == {6.0}
    final = folder / "model" / inner.rpartition("/")[2]
    assert final.read_bytes() == (stages[2] / "training" / inner).read_bytes()
    shown = loss_of(read_run(folder))
    assert [[step for step, _ in shown[index]] for index in (1, 2, 3)] == [[1, 2, 3, 4, 5]] * 2 + [[1, 2, 3]]
    manifest = read_json(folder / "manifest.json")
    monkeypatch.setattr(trainer, "train_stage", lambda *_, **__: pytest.fail("trained again"))
    assert execute(recipe).folder == folder
    assert read_json(folder / "manifest.json")["steps"] == manifest["steps"]
    assert torch.isfinite(next(iter(moments.values()))).all()
