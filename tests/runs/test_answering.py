"""Runs whose rows are answered by several models: measured model by model, handed back, and routed elsewhere alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from everlearn.data.instance import Instance
from everlearn.errors import UserError
from everlearn.evaluation.answering import Answerer, ByTask, TaskRule
from everlearn.files import read_json, read_jsonl, read_mapping, read_vouched
from everlearn.methods.base import Method, StageContext
from everlearn.methods.registry import method_class
from everlearn.models.state import ModelState
from everlearn.progress import LineProgress
from everlearn.recipe import Recipe
from everlearn.report.html import write_report
from everlearn.runs.evaluation import evaluate_checkpoint
from everlearn.runs.loop import execute
from everlearn.runs.routing import ROUTED, ROUTING, answerer_in
from tests.runs.test_loop import TASKS, tiny_recipe
from tests.runs.test_publish import code_of

EVALUATION = {"max_new_tokens": 6, "bootstrap_samples": 100, "general": False}


class ByNumber(ByTask):
    """Rows whose number is odd go to the first model, others to that of the stage: both within one task."""

    knows_task = False
    seen: tuple[Instance, ...] = ()

    def choose(self, rows: Sequence[Instance]) -> list[str]:
        type(self).seen += tuple(rows)
        return ["stage_1" if int(row.input.split()[2]) % 2 else self.rule.others for row in rows]


def models_of(context: StageContext) -> dict[str, ModelState]:
    return {f"stage_{at}": context.phase_of(at, None) for at in range(1, context.stage.index + 1)}


def answerer_of(kind: type[ByTask], context: StageContext) -> Answerer | None:
    """A model for each task so far, from the second stage on."""
    at = context.stage.index
    if at == 1:
        return None
    names = {
        task.name: f"stage_{number}" for number, task in enumerate((*context.stage.seen, *context.stage.tasks), 1)
    }
    return kind(TaskRule(tasks=names, others=f"stage_{at}"), models_of(context))


def routed(monkeypatch: pytest.MonkeyPatch, kind: type[ByTask]) -> None:
    """Lets sequential training answer so."""
    cls = method_class("sequential")
    monkeypatch.setattr(cls, "Answerer", kind)
    monkeypatch.setattr(cls, "overrides", Method.overrides)
    monkeypatch.setattr(cls, "answerer", lambda self, context: answerer_of(kind, context))


def recipe_of(folder: Path, base: Path, tuning: str = "lora", **sections: Any) -> Recipe:
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 2e-2 if tuning == "lora" else 3e-3}
    model = {"base": str(base), "tuning": tuning, "lora": {"rank": 4}, "dtype": "float32"}
    return tiny_recipe(folder, base, **{"model": model, "training": training, "evaluation": EVALUATION, **sections})


def answers(folder: Path, stage: int, task: str) -> list[str]:
    place = folder / "stages" / f"{stage:02d}-{TASKS[stage - 1]}" / "predictions" / task / "predictions.jsonl"
    return [str(row["prediction"]) for row in read_jsonl(place)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The same run without an answerer."""
    return execute(recipe_of(tmp_path_factory.mktemp("plain"), tiny_model)).folder


def test_each_task_answered_by_the_model_of_its_stage_scores_as_right_after_it(
    plain: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed(monkeypatch, ByTask)
    result = execute(recipe_of(tmp_path, tiny_model))
    folder = result.folder
    for task, at in (("colours", 1), ("animals", 2), ("places", 3)):
        assert answers(folder, 3, task) == answers(plain, at, task)
    assert answers(plain, 3, "colours") != answers(plain, 1, "colours"), "the stages' models differ"
    steps = read_vouched(folder / "manifest.json")["steps"]
    found = [steps[f"stages/03-places/predictions/{task}"]["reused"] for task in TASKS]
    assert found == [True, True, False], "what an unchanged model has answered is not answered again"
    assert read_mapping(folder / "stages/03-places/scores.json")["answered_by"]["animals"] == {"stage_2": 4}
    assert "answered_by" not in read_mapping(folder / "stages/01-colours/scores.json")
    assert result.metrics["BWT"]["value"] == 0  # type: ignore[index]
    page = write_report(folder).read_text()
    assert "Task-incremental" in page
    assert "is told which task each row belongs to, and answers it with one of 3 models" in page
    assert "Task-incremental" not in write_report(plain).read_text()


def test_rows_of_one_task_are_answered_model_by_model_and_put_back_into_order(
    plain: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed(monkeypatch, ByNumber)
    monkeypatch.setattr(ByNumber, "seen", ())
    recipe = recipe_of(tmp_path, tiny_model)
    folder = execute(recipe).folder
    for task in TASKS:
        first, last = answers(plain, 1, task), answers(plain, 3, task)
        assert answers(folder, 3, task) == [(first if at % 2 else last)[at] for at in range(4)]
    parts = sorted((folder / "stages/03-places/answers/colours").iterdir())
    assert sorted(len(list(read_jsonl(part / "predictions.jsonl"))) for part in parts) == [2, 2]
    steps = read_vouched(folder / "manifest.json")["steps"]
    assert sum(step["reused"] for place, step in steps.items() if place.startswith("stages/03-places/answers")) == 3
    assert {(row.task, row.output, row.references, row.id) for row in ByNumber.seen} == {("", "", (), "")}
    page = write_report(folder).read_text()
    assert "answers each row with one of 3 models, chosen by what the row asks" in page
    assert "Task-incremental" not in page
    manifest = (folder / "manifest.json").stat().st_mtime_ns
    shutil.rmtree(folder / "model")
    shutil.rmtree(recipe.cache_dir or folder.parent / ".cache")
    again = execute(recipe)  # all of it is found in the run folder itself
    assert again.folder == folder
    assert (folder / "model" / ROUTING).exists()
    assert (folder / "manifest.json").stat().st_mtime_ns >= manifest


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_folder_that_is_handed_back_answers_as_measured_by_its_card_and_by_evaluate(
    tuning: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed(monkeypatch, ByTask)
    recipe = recipe_of(tmp_path, tiny_model, tuning)
    folder = execute(recipe).folder
    wanted = read_json(folder / "stages/03-places/scores.json")
    handed = tmp_path / "handed"
    shutil.move(folder / "model", handed)
    assert sorted(path.name for path in (handed / ROUTED).iterdir()) == ["stage_1", "stage_2", "stage_3"]
    weights = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
    assert (handed / weights).read_bytes() == (handed / ROUTED / "stage_3" / weights).read_bytes()
    scores = evaluate_checkpoint(recipe, handed, tmp_path / "elsewhere", LineProgress())
    assert scores["tasks"] == wanted["tasks"]  # type: ignore[index, call-overload]
    assert scores["answered_by"] == wanted["answered_by"]  # type: ignore[index, call-overload]
    space: dict[str, Any] = {}
    exec(code_of(handed), space)
    for task in TASKS:
        place = folder / f"stages/03-places/predictions/{task}/predictions.jsonl"
        for row in list(read_jsonl(place))[:2]:
            question = f"{row['instruction']}\n\n{row['input']}"
            assert space["answer"](question, task).strip() == row["prediction"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "sequental"}, "unknown method 'sequental': did you mean 'sequential'"),
        ({"method": "l2"}, "the method l2 chooses among no models"),
        ({"models": {}}, "models: .* at least 1 item"),
        ({"models": {"stage_1": "../elsewhere"}}, "there is no model 'stage_1' in '../elsewhere' below its folder"),
        ({"models": {"stage_1": "routed/gone"}}, "there is no model 'stage_1' in 'routed/gone'"),
        ({"models": {"stage_1": "routed/stage_1"}}, "its rule names 'stage_2', which is none of its models"),
        ({"rule": {"tasks": {}}}, "rule: key 'others' is missing"),
        ({"rule": {"tasks": {}, "others": "nobody"}}, "its rule names 'nobody'"),
    ],
)
def test_a_spoilt_routing_is_refused_in_one_sentence(
    change: dict[str, Any], words: str, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed(monkeypatch, ByTask)
    handed = tmp_path / "handed"
    shutil.copytree(plain / "model", handed)
    for name in ("stage_1", "stage_2"):
        shutil.copytree(plain / "stages/01-colours/training/adapter", handed / ROUTED / name)
    models = {name: f"{ROUTED}/{name}" for name in ("stage_1", "stage_2")}
    rule = {"tasks": {"colours": "stage_1"}, "others": "stage_2"}
    good = {"method": "sequential", "models": models, "rule": rule}
    (handed / ROUTING).write_text(json.dumps({**good, **change}))
    with pytest.raises(UserError, match=rf"routing\.json.*{words}.*to measure the folder's main model alone\.$"):
        answerer_in(handed, "adapter")
