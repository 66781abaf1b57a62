"""A plan says beforehand what a run is going to do and take, writes nothing, and is what the run then does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import everlearn
from everlearn import room
from everlearn.cli.main import main
from everlearn.cli.plan_tables import plan_tables
from everlearn.errors import ModelError, RecipeError, RunError
from everlearn.files import read_json, read_vouched
from everlearn.generation.protocol import Sampling
from everlearn.generation.writing import Writing
from everlearn.models import checking, features, loading
from everlearn.recipe import MethodConfig, Recipe, make_recipe
from everlearn.runs import probe
from everlearn.runs.compare import compare
from everlearn.runs.loop import execute
from everlearn.runs.outlook import look_ahead
from everlearn.runs.plan import ANSWERS, GENERAL, HEADS, OWN, TRAINING, Part, Plan, least_bytes, plan_run, totals
from everlearn.runs.prepare import prepare
from tests.runs.test_loop import TASKS, tiny_recipe


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BUDGET_S", {"reading": 0.1, "writing": 0.2, "training": 0.2})


def plan_of(recipe: Recipe) -> Plan:
    return plan_run(prepare(recipe, trains=True), recipe.method.name)


def heads_recipe(folder: Path, base: Path, **method: object) -> Recipe:
    stream = tiny_recipe(folder, base).model_dump()["stream"]
    return tiny_recipe(
        folder, base, stream={**stream, "scenario": "class_incremental"}, method={"name": "seq", **method}
    )


def spent(folder: Path) -> dict[str, tuple[int, int]]:
    """Steps and tokens of each stage's trainings."""
    found: dict[str, tuple[int, int]] = {}
    for path in folder.glob("stages/*/*/summary.json"):
        summary: Any = read_json(path)
        steps, tokens = found.get(path.parts[-3], (0, 0))
        found[path.parts[-3]] = (steps + summary["steps"], tokens + summary.get("tokens", 0))
    return found


@pytest.mark.parametrize("method", ["random_rehearsal", "lr_path_switching", "single_task", "multitask"])
def test_a_run_trains_the_steps_and_tokens_that_it_has_planned(method: str, tmp_path: Path, tiny_model: Path) -> None:
    options = {"ratio": 0.5} if method == "random_rehearsal" else {}
    recipe = tiny_recipe(tmp_path, tiny_model, method={"name": method, **options})
    planned = [part for part in plan_of(recipe).parts if part.kind == TRAINING]
    folder = execute(recipe).folder
    assert {part.stage: (part.steps, part.trained_tokens) for part in planned} == spent(folder)
    kept = read_vouched(folder / "manifest.json")["plan"]
    assert [part["steps"] for part in kept["parts"] if part["kind"] == TRAINING] == [part.steps for part in planned]


@pytest.mark.parametrize("probes", [None, []])
@pytest.mark.parametrize("preset", ["w_fixbc_cos", "w_fixbc_proto", "seq_lin", "rehearsed"])
def test_steps_of_heads_and_tokens_read_for_their_states_are_those_planned(
    preset: str, probes: list[str] | None, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    states = features.last_prompt_states

    def counted(loaded: Any, prompts: Any, **keys: Any) -> Any:
        read.append(sum(map(len, prompts)))
        return states(loaded, prompts, **keys)

    monkeypatch.setattr(features, "last_prompt_states", counted)
    recipe = heads_recipe(tmp_path, tiny_model, preset="w_fixbc_lin" if preset == "rehearsed" else preset)
    tree = recipe.model_dump()
    if preset == "rehearsed":
        tree["method"] = [tree["method"], {"name": "random_rehearsal", "ratio": 0.5}]
    if probes is not None:
        tree["evaluation"]["probing"]["probes"] = probes
    recipe = make_recipe(tree)
    parts = plan_of(recipe).parts
    folder = execute(recipe).folder
    planned: dict[str, tuple[int, int]] = {}
    for part in parts:
        if part.kind in (TRAINING, HEADS):
            steps, tokens = planned.get(part.stage, (0, 0))
            planned[part.stage] = (steps + part.steps, tokens + part.trained_tokens)
    trained = [path.parts[-3:-1] for path in folder.glob("stages/*/*/summary.json")]
    assert {stage: planned.get(stage, (0, 0)) for stage, _ in trained} == spent(folder)
    assert sum(part.read_tokens for part in parts if part.kind != GENERAL) == sum(read)
    measured = read_vouched(folder / "manifest.json")["steps"].items()
    anew = [place for place, step in measured if place.endswith("/general") and not step["reused"]]
    assert len([part for part in parts if part.kind == GENERAL]) == len(anew)


def test_a_choice_of_classes_is_read_and_not_written(tmp_path: Path, tiny_model: Path) -> None:
    stream = {**tiny_recipe(tmp_path, tiny_model).model_dump()["stream"], "scenario": "task_incremental"}
    recipe = tiny_recipe(tmp_path, tiny_model, stream=stream)
    base = next(part for part in plan_of(recipe).parts if part.kind == ANSWERS)
    prepared = prepare(recipe)
    tokenizer, template = prepared.facts.tokenizer, prepared.template
    expected = sum(
        len(template.prompt_ids(row, tokenizer)) + len(template.target_ids(replace(row, output=name), tokenizer))
        for task in prepared.stream
        for row in task.evaluation
        for name in task.classes
    )
    assert (base.read_tokens, base.most_written) == (expected, 0)


def test_generated_tokens_are_bounded_and_expected_at_the_length_of_answers(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    plan = plan_of(recipe)
    assert [part.kind for part in plan.parts[:2]] == [ANSWERS, GENERAL]
    base, *_, last = [part for part in plan.parts if part.kind == ANSWERS]
    assert base.most_written == last.most_written == 3 * 4 * recipe.evaluation.max_new_tokens
    assert base.written is None, "nobody knows what an unlearned model answers"
    assert last.written is not None
    assert 0 < last.written <= last.most_written
    manifest = read_vouched(execute(recipe).folder / "manifest.json")
    for part in plan.parts:
        places = [step for place, step in manifest["steps"].items() if place.startswith(f"stages/{part.stage}/pred")]
        if part.kind == ANSWERS:
            assert sum(step["generated_tokens"] for step in places) <= part.most_written


def test_the_bound_of_what_is_written_keeps_within_the_context() -> None:
    two = Writing("x", [[1] * 10, [1] * 90], 20, Sampling(max_new_tokens=30, samples_per_prompt=2), tokens=25.0)
    assert two.most_tokens(100) == 20 * 2 * (30 + 10) / 2
    assert two.expected_tokens(100) == 800  # no more than there is room for
    assert two.expected_tokens(1000) == 20 * 2 * 25


def test_what_a_method_writes_is_planned_and_what_nobody_knows_is_said(tmp_path: Path, tiny_model: Path) -> None:
    plan = plan_of(tiny_recipe(tmp_path, tiny_model, method={"name": "ssr", "ratio": 0.5}))
    own = [part for part in plan.parts if part.kind == OWN]
    assert [part.stage for part in own] == ["01-colours", "02-animals"]
    raw, answers = own[0].writings
    assert raw.completions == 12 * 3  # oversampling times rows, of all pairs of four demonstrations
    assert (answers.count, raw.by_base) == (12, True)  # spare rows are answered too
    assert plan.unknown == []
    told = plan_of(tiny_recipe(tmp_path, tiny_model, method="ewc")).unknown
    assert told == ["ewc: what it does after a stage", "ewc: its terms in training"]


def test_a_plan_prints_all_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude={"runs_dir", "cache_dir"})), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    where = ["--runs-dir", str(tmp_path / "runs")]
    assert main(["run", str(path), "--plan", "--quiet", *where]) == 0
    shown = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    head, *rows = shown.splitlines()
    assert head.split() == "stage what steps trained tokens generated at most time".split()
    assert [row.split()[:2] for row in rows[:3]] == [
        ["00-base", "answers"],
        ["00-base", "general"],
        ["01-colours", "training"],
    ]
    assert "Memory: training" in shown
    assert "Disk: at least" in shown
    assert main(["compare", str(path), "--plan", "--quiet", "--methods", "sequential,l2", *where]) == 0
    shown = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert {"sequential", "l2"} <= {line.split()[0] for line in shown.splitlines() if line}
    assert "Note: not in these times: l2: its terms in training." in shown


def test_from_python_a_plan_has_seconds_memory_and_disk(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    found = everlearn.plan(recipe, name="other")
    assert found.folder.name == "other"
    (plan,) = found.plans
    assert all(part.seconds is not None and part.seconds > 0 and part.written is not None for part in plan.parts)
    assert found.total.seconds == pytest.approx(sum(part.seconds or 0 for part in plan.parts))
    assert found.total.steps == totals(plan.parts).steps == 9
    assert found.trial is not None
    assert min(found.trial.memory.training, found.trial.memory.generation) > 0
    assert found.disk_needed == 3 * loading.sizes_of(prepare(recipe).recipe.model).kept_bytes
    assert json.loads(json.dumps(found.to_json()))["total"]["steps"] == 9
    assert found.trial.waited is None or 0 <= found.trial.waited < 1
    for waited, is_told in ((None, False), (0.05, False), (0.4, True)):
        shown = plan_tables(replace(found, trial=replace(found.trial, waited=waited)))
        assert ("for 40% of the trial other work had the processor" in shown) is is_told


def test_runs_of_a_comparison_share_the_base_and_plain_first_stages(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    methods = [MethodConfig(name="sequential"), MethodConfig(name="random_rehearsal", ratio=0.5)]
    found = look_ahead(recipe, methods, [1, 2], is_comparison=True)
    alone = [totals(plan.parts).steps for plan in found.plans]
    assert alone == [9, 14]
    assert found.total.steps == 2 * (9 + 14 - 3)
    results = compare(recipe, methods, [1, 2])
    made = [
        step
        for runs in results.values()
        for run in runs
        for place, step in read_vouched(run.folder / "manifest.json")["steps"].items()
        if place.endswith("/training") and not step["reused"]
    ]
    assert len(made) == 2 * (3 + 3 - 1)


def full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))


def test_a_run_that_cannot_fit_on_the_disk_is_refused_before_it_begins(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    needed = 3 * loading.sizes_of(prepare(recipe).recipe.model).kept_bytes
    full_disk(monkeypatch, needed - 1)
    for begin in (
        lambda: execute(recipe),
        lambda: look_ahead(recipe),
        lambda: compare(recipe, [MethodConfig(name="sequential")]),
        lambda: look_ahead(recipe, [MethodConfig(name="sequential")], is_comparison=True),
    ):
        with pytest.raises(RunError) as caught:
            begin()
        for told in (str(Path(recipe.runs_dir) / recipe.name), f"{needed:,} bytes", f"{needed - 1:,} are free"):
            assert told in str(caught.value)
        assert not Path(recipe.runs_dir).exists()
    full_disk(monkeypatch, needed)
    assert execute(recipe).matrix["stages"]


def test_what_stands_already_needs_no_room(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    execute(recipe)
    full_disk(monkeypatch, 0)
    assert execute(recipe).matrix["stages"]
    assert execute(recipe.model_copy(update={"name": "again"})).matrix["stages"]  # found in the cache


def test_full_tuning_and_checkpoints_need_more(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, model={"base": str(tiny_model), "tuning": "full", "dtype": "float32"})
    prepared = prepare(recipe)
    sizes = loading.sizes_of(prepared.recipe.model)
    assert sizes.kept_bytes == 4 * sizes.moving
    weights = loading.load_model(recipe.model).model.num_parameters()
    assert sizes.moving == weights
    assert least_bytes(prepared, [prepared.method]) == 3 * 4 * weights
    training = recipe.training.model_copy(update={"checkpoint_every": 1})
    often = prepare(recipe.model_copy(update={"training": training}))
    assert least_bytes(often, [often.method]) == (3 * 4 + 12) * weights


@pytest.mark.parametrize(("preset", "moved"), [("fixbc_cos", 0), ("w_fixbc_proto", 1), ("seq_lin", 3)])
def test_no_room_is_asked_for_weights_that_stages_of_heads_do_not_keep(
    preset: str, moved: int, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = heads_recipe(tmp_path, tiny_model, preset=preset)
    prepared = prepare(recipe)
    sizes = loading.sizes_of(prepared.recipe.model)
    rows = sum(len(task.train) + len(task.evaluation) for task in prepared.stream)
    needed = least_bytes(prepared, [prepared.method])
    assert needed == moved * sizes.kept_bytes + (1 + moved) * rows * sizes.width * 4
    folder = execute(recipe).folder
    assert len(list(folder.glob("stages/*/*/adapter/adapter_model.safetensors"))) == moved
    about = [path.stat() for path in folder.glob("stages/*/features/**/states.safetensors")]
    sizes_kept = {one.st_ino: one.st_size for one in about}  # later stages link to them
    assert needed - moved * sizes.kept_bytes <= sum(sizes_kept.values()) < needed + 200 * len(sizes_kept)


def test_a_plan_is_refused_where_its_run_would_be(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="nothing to compare"):
        look_ahead(tiny_recipe(tmp_path, tiny_model), is_comparison=True)
    with pytest.raises(RecipeError, match="leave the task's rows no place"):
        look_ahead(tiny_recipe(tmp_path, tiny_model, training={"batch_size": 1}, method="gere"))
    monkeypatch.setattr(checking, "total_bytes", lambda device: 100)
    with pytest.raises(ModelError, match="takes at least"):
        look_ahead(tiny_recipe(tmp_path, tiny_model))


def test_seconds_are_reckoned_from_what_tokens_take() -> None:
    tried: Any = probe._Probe.__new__(probe._Probe)
    tried.context, tried.load_s, tried._read_s = 100, 2.0, 0.001
    tried._rates = {"x": probe._Rate(prompt_s=0.1, token_s=0.01, tokens=3.0)}
    asked = Writing("x", [[1] * 10], 50, Sampling(max_new_tokens=20))
    told = tried.told(Part("00-base", ANSWERS, read_tokens=1000, writings=[asked]))
    assert told.written == 150
    assert told.seconds == pytest.approx(1.0 + 50 * 0.1 + (150 - 50) * 0.01)  # the first token is in the beginning
    part = Part("01-a", TRAINING, steps=10, trained_tokens=4000)
    tried._trained = {probe._like(part): (0.5, 0.002)}
    assert tried.told(part).seconds == pytest.approx(2.0 + 0.5 + 8.0)


def test_a_trial_that_runs_out_of_time_takes_the_others_rates(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "BUDGET_S", {"reading": 0.0, "writing": 0.0, "training": 0.0})
    recipe = tiny_recipe(tmp_path, tiny_model)
    (plan,) = look_ahead(recipe).plans
    training = [part.seconds for part in plan.parts if part.kind == TRAINING]
    assert len(training) == len(TASKS)
    assert all(seconds and seconds > 0 for seconds in training)


def test_a_trial_times_the_steps_of_heads(tmp_path: Path, tiny_model: Path) -> None:
    (plan,) = look_ahead(heads_recipe(tmp_path, tiny_model, preset="w_fixbc_lin")).plans
    found = [part for part in plan.parts if part.kind == HEADS]
    assert len(found) == 3
    assert all(part.steps and part.seconds for part in found)
    assert plan.unknown == ["probing: the fits of 4 probes"]
