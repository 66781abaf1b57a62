"""Probing in a run: one pass a model state, found again, resumed, and its two numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.errors import RecipeError
from everlearn.evaluation.probing import PROBES
from everlearn.files import read_json, read_vouched, write_jsonl
from everlearn.methods.base import Stage
from everlearn.models import features
from everlearn.recipe import Recipe, make_recipe
from everlearn.report.facts.probed import verdict
from everlearn.report.facts.study import read_study
from everlearn.runs.loop import RunResult, execute
from everlearn.runs.probing import Probing
from tests.killed import killed_at
from tests.runs.test_vouched import unvouched

STAGES = ("01-t1", "02-t2", "03-t3")
CLASSES = (("red", "blue"), ("cat", "dog", "cow"), ("north", "south"))


def recipe_of(folder: Path, base: Path, scenario: str | None = "class_incremental", **sections: object) -> Recipe:
    entries = []
    for number, classes in enumerate(CLASSES, 1):
        paths = {}
        for part, count in (("train", 6), ("evaluation", 3)):
            paths[part] = str(folder / f"{number}.{part}.jsonl")
            rows = [{"input": f"{part} {at}: {name}", "output": name} for at in range(count) for name in classes]
            write_jsonl(Path(paths[part]), rows)
        entries.append({"name": f"t{number}", "demonstrations": 0, **paths})
    tree: dict[str, object] = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "model": {"base": str(base), "lora": {"rank": 4}},
        "stream": {"tasks": entries, "scenario": scenario},
        "method": "sequential",
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"max_new_tokens": 2, "bootstrap_samples": 100, "general": False},
    }
    return make_recipe({**tree, **sections})


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RunResult:
    return execute(recipe_of(tmp_path_factory.mktemp("probed"), tiny_model))


def test_a_run_leaves_what_probes_found_before_the_first_stage_and_after_each(probed: RunResult) -> None:
    assert probed.probing is not None
    assert read_vouched(probed.folder / "probing.json") == probed.probing
    assert probed.probing["tasks"] == ["t1", "t2", "t3"]
    assert list(probed.probing["probes"]) == list(PROBES)  # type: ignore[call-overload]
    for found in probed.probing["probes"].values():  # type: ignore[attr-defined]
        assert [len(row) for row in (found["base"], *found["values"])] == [3, 3, 3, 3]
    assert {"probe_gap", "probe_slope"} <= probed.metrics.keys()
    assert "a linear probe" in probed.metrics["definitions"]["probe_gap"]  # type: ignore[index]
    heads = read_json(probed.folder / "stages" / "01-t1" / "probing" / "linear" / "heads.json")
    assert [head["is_flat"] for head in heads] == [True]  # type: ignore[index, union-attr]
    assert not unvouched(probed.folder)


def test_no_state_is_computed_twice(probed: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(features, "last_prompt_states", lambda *_, **__: asked.append(1))
    recipe = read_recipe(probed.folder)
    again = execute(recipe)
    assert (again.probing, again.metrics) == (probed.probing, probed.metrics)
    other = recipe.model_copy(update={"name": "other"})  # finds all in the cache
    assert execute(other).probing == probed.probing
    assert not asked


def read_recipe(folder: Path) -> Recipe:
    from everlearn.runs.claim import recipe_of as kept

    return kept(folder)


def test_a_frozen_backbone_is_read_and_probed_once(tmp_path: Path, tiny_model: Path) -> None:
    replay = {"name": "experience_replay", "selection": "herding", "capacity": 14}
    result = execute(recipe_of(tmp_path, tiny_model, method=[{"name": "seq", "head": "linear"}, replay]))
    steps = read_vouched(result.folder / "manifest.json")["steps"]
    of_stage = {name: {place for place in steps if place.startswith(f"stages/{name}/")} for name in STAGES}
    assert len([place for place in of_stage["01-t1"] if "/probing/" in place]) == len(PROBES)
    assert len([place for place in of_stage["01-t1"] if "/features/t" in place]) == 2 * len(CLASSES)
    for name in STAGES[1:]:
        assert not [place for place in of_stage[name] if "/probing/" in place]
        assert all(steps[place]["reused"] for place in of_stage[name] if "/features/t" in place)
    for found in result.probing["probes"].values():  # type: ignore[index, attr-defined]
        assert found["values"][0] == found["values"][1] == found["values"][2]
    assert result.metrics["probe_slope"]["value"] == 0.0  # type: ignore[index]
    (method,) = read_study(result.folder).methods
    assert "its heads" in verdict(method)


@pytest.mark.parametrize(
    ("report", "moment"),
    [(3, "reading all tasks' prompts after 01-t1"), (0, "fitting the cosine linear probe after 02-t2")],
)
def test_a_run_that_dies_while_probing_ends_alike(
    report: int, moment: str, probed: RunResult, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = recipe_of(tmp_path, tiny_model)
    with killed_at(report, moment) as progress:
        execute(recipe, progress=progress)
    resumed = execute(recipe)
    assert (resumed.probing, resumed.metrics) == (probed.probing, probed.metrics)


def test_task_incremental_probes_have_a_head_a_task(tmp_path: Path, tiny_model: Path) -> None:
    evaluation = {"max_new_tokens": 2, "general": False, "bootstrap_samples": 100}
    evaluation["probing"] = {"probes": ["linear", "prototype"], "schedule": "published"}
    result = execute(recipe_of(tmp_path, tiny_model, "task_incremental", evaluation=evaluation))
    place = result.folder / "stages" / "03-t3" / "probing"
    answers = read_json(place / "linear" / "predictions.json")
    assert {task: max(found) < len(CLASSES[at]) for at, (task, found) in enumerate(answers.items())} == {  # type: ignore[union-attr]
        "t1": True, "t2": True, "t3": True,
    }  # fmt: skip
    assert [head["steps"] for head in read_json(place / "linear" / "heads.json")] == [20, 20, 20]  # type: ignore[union-attr]
    assert result.probing is not None
    assert list(result.probing["probes"]) == ["linear", "prototype"]  # type: ignore[call-overload]


@pytest.mark.parametrize(("scenario", "probes"), [(None, ["linear"]), ("class_incremental", [])])
def test_nothing_is_probed_without_classes_or_without_probes(
    scenario: str | None, probes: list[str], tmp_path: Path, tiny_model: Path
) -> None:
    evaluation = {"max_new_tokens": 2, "general": False, "bootstrap_samples": 100, "probing": {"probes": probes}}
    result = execute(recipe_of(tmp_path, tiny_model, scenario, evaluation=evaluation))
    assert result.probing is None
    assert not (result.folder / "probing.json").exists()
    assert not list(result.folder.glob("stages/*/probing")) + list(result.folder.glob("stages/*/features"))
    assert "probe_gap" not in result.metrics


@pytest.mark.parametrize(
    ("probing", "sentence"),
    [
        ({"probes": ["linear", "linear"]}, "'linear' stands twice"),
        ({"probes": ["cosine"]}, "evaluation.probing.probes"),
        ({"schedule": "long"}, "evaluation.probing.schedule"),
        ({"probe": ["linear"]}, "probes"),
    ],
)
def test_bad_keys_are_refused(probing: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        make_recipe({"evaluation": {"probing": probing}})


def test_gap_and_slope_are_those_of_their_definitions(probed: RunResult) -> None:
    from everlearn.runs.prepare import prepare

    recipe = read_recipe(probed.folder)
    stream = prepare(recipe, probed.folder, trains=False).stream
    nothing: Any = None
    probing = Probing(recipe, stream, nothing, nothing, nothing, nothing, nothing)
    right = np.random.default_rng(0).integers(0, 2, (4, 3, 9)) * 100.0
    counts = [len(task.evaluation) for task in stream]
    for index in range(4):
        found = {task.name: right[index, at, : counts[at]] for at, task in enumerate(stream)}
        probing._right[index] = {"linear": found}
    answered = {3: {task.name: [{"scores": {"accuracy": 100.0 * (row % 2)}} for row in range(count)]
                    for task, count in zip(stream, counts, strict=True)}}  # fmt: skip
    stages = [Stage(at + 1, (task,), stream.tasks[:at], at == 2) for at, task in enumerate(stream)]
    metrics: dict[str, Any] = {"definitions": {}}
    probing._add_metrics(stages, answered, metrics)
    probes = np.array([[right[index, at, : counts[at]].mean() for at in range(3)] for index in range(1, 4)])
    observed = [100.0 * np.mean([row % 2 for row in range(count)]) for count in counts]
    assert metrics["probe_gap"]["value"] == pytest.approx(np.mean(probes[-1] - observed))
    assert metrics["probe_slope"]["value"] == pytest.approx(np.polyfit([1, 2, 3], probes.mean(1), 1)[0])
    for name in ("probe_gap", "probe_slope"):
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    metrics = {"definitions": {}}
    probing._add_metrics(stages[:1], {1: answered[3]}, metrics)
    assert "probe_slope" not in metrics, "one stage has no course"
