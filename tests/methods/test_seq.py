"""SEQ*: its switches, what a run of it leaves, and that heads answer elsewhere as they did in the run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from everlearn.api import evaluate
from everlearn.data.prompts import VanillaTemplate
from everlearn.errors import ModelError, RecipeError
from everlearn.files import read_json, read_jsonl, write_json
from everlearn.methods.registry import make_method
from everlearn.methods.seq import PRESETS
from everlearn.methods.stack import assemble
from everlearn.models.features import last_prompt_states
from everlearn.models.loading import load_model
from everlearn.models.state import ModelState, Tuning
from everlearn.progress import LineProgress
from everlearn.recipe import MethodConfig, Recipe, TrainingConfig
from everlearn.report.html import write_report
from everlearn.runs.loop import execute
from everlearn.training.phase import HeadTraining, Phase
from everlearn.training.schedules import Schedule
from everlearn.training.stage import train_stage
from tests.killed import killed_at
from tests.methods.contexts import Bench, facts_of, number_stream, tiny_config, with_classes
from tests.runs.test_loop import TASKS, tiny_recipe
from tests.runs.test_publish import code_of

RATE = {"head_learning_rate": 0.05}
"""High enough for the few steps of a test."""


def recipe_of(
    folder: Path, base: Path | str, scenario: str = "class_incremental", *, tuning: str = "lora", **method: Any
) -> Recipe:
    """Three tasks of three classes each."""
    tree = tiny_recipe(folder, Path(base)).model_dump()
    return tiny_recipe(
        folder,
        Path(base),
        model={"base": str(base), "lora": {"rank": 4, "dropout": 0.0}, "tuning": tuning, "device": "cpu"},
        stream={**tree["stream"], "scenario": scenario},
        training={**tree["training"], "epochs": 2, "learning_rate": 1e-3, "scheduler": "constant"},
        evaluation={**tree["evaluation"], "general": False},
        method={"name": "seq", **RATE, **method},
    )


def training_of(run: Path, stage: int) -> Path:
    return run / "stages" / f"{stage:02d}-{TASKS[stage - 1]}" / "training"


def heads_after(run: Path, stage: int) -> dict[str, torch.Tensor]:
    return load_file(training_of(run, stage) / "heads" / "heads.safetensors")


def predicted(run: Path, stage: int) -> list[dict[str, Any]]:
    place = training_of(run, stage).parent / "predictions"
    return [row for task in TASKS for row in read_jsonl(place / task / "predictions.jsonl")]


def asked_elsewhere(run: Path, elsewhere: Path) -> Any:
    """What answers as the card of the moved model says."""
    shutil.move(run / "model", elsewhere)
    space: dict[str, Any] = {}
    exec(code_of(elsewhere), space)
    return space["answer"]


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_old_heads_stand_still_and_answer_elsewhere_as_in_the_run(
    tmp_path: Path, tiny_model: Path, scenario: str
) -> None:
    run = execute(recipe_of(tmp_path, tiny_model, scenario)).folder
    one, two, three = (heads_after(run, stage) for stage in (1, 2, 3))
    assert [set(one), set(two), set(three)] == [{f"{at}.weight" for at in range(count)} for count in (1, 2, 3)]
    assert torch.equal(one["0.weight"], two["0.weight"])
    assert torch.equal(two["1.weight"], three["1.weight"])
    assert (training_of(run, 1).parent / "warm_up" / "adapter").exists()
    assert not any((training_of(run, stage) / "adapter").exists() for stage in (1, 2, 3))
    rows = predicted(run, 3)
    assert {row["finish_reason"] for row in rows} == {"head"}
    is_known = scenario == "task_incremental"
    if is_known:
        assert all(row["prediction"].split()[0] == row["gold"].split()[0] for row in rows)
    write_report(run)
    answer = asked_elsewhere(run, tmp_path / "elsewhere")
    for row in rows:
        task = [row["gold"].split()[0]] if is_known else []
        assert answer(f"{row['instruction']}\n\n{row['input']}", *task) == row["prediction"]


@pytest.mark.parametrize(
    ("preset", "moves", "tuning"),
    [
        ("seq_lin", {"backbone", "old"}, "lora"),
        ("fixc_cos", {"backbone"}, "full"),
        ("fixb_cos", {"old"}, "lora"),
        ("p_w_fixbc_cos", {"to come"}, "lora"),
        ("w_fixbc_proto", set(), "lora"),
    ],
)
def test_what_moves_is_what_the_preset_says(
    tmp_path: Path, tiny_model: Path, preset: str, moves: set[str], tuning: str
) -> None:
    run = execute(recipe_of(tmp_path, tiny_model, tuning=tuning, preset=preset)).folder
    one, two = heads_after(run, 1), heads_after(run, 2)
    assert torch.equal(one["0.weight"], two["0.weight"]) == ("old" not in moves)
    assert ("2.weight" in one) == ("to come" in moves)
    if "to come" in moves:
        assert not torch.equal(one["2.weight"], two["2.weight"])
    assert not torch.equal(one.get("1.weight", torch.zeros(1)), two["1.weight"])
    inner = "adapter" if tuning == "lora" else "model"
    assert (training_of(run, 2) / inner).exists() == ("backbone" in moves)
    write_report(run)
    answer = asked_elsewhere(run, tmp_path / "elsewhere")
    for row in predicted(run, 3):
        assert answer(f"{row['instruction']}\n\n{row['input']}") == row["prediction"]


def test_prototypes_are_the_means_of_states(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model, preset="w_fixbc_proto", warmup_epochs=0)
    run = execute(recipe).folder
    settings = read_json(training_of(run, 1) / "heads" / "heads.json")
    assert settings["kind"] == "prototype"  # type: ignore[index, call-overload]
    features = next((training_of(run, 1).parent / "features" / "colours" / "train").glob("*.safetensors"))
    states = load_file(features)["states"]
    names = settings["tasks"][0]["classes"]  # type: ignore[index, call-overload]
    wanted = torch.stack([states[[at for at in range(12) if f"colours {at % 3}" == name]].mean(0) for name in names])
    torch.testing.assert_close(heads_after(run, 1)["0.weight"], wanted)


def test_heads_trained_on_kept_states_are_those_trained_through_the_model(tmp_path: Path, tiny_model: Path) -> None:
    stream = with_classes(number_stream())
    task = stream[0]
    rows = task.train[:30]
    loaded = load_model(tiny_config(tiny_model).model_copy(update={"dtype": "float32"}))
    template, config = VanillaTemplate(), TrainingConfig(epochs=3, batch_size=8, precision="float32")
    plan = HeadTraining("linear", ((task.name, task.classes),), (task.name,), learning_rate=0.02)
    phase = Phase(heads=plan, schedule=Schedule("constant"))
    states = last_prompt_states(loaded, [template.prompt_ids(row, loaded.tokenizer) for row in rows])
    found = []
    for name, given in (("through", None), ("kept", {"own": states})):
        train_stage(
            loaded,
            rows,
            config,
            template,
            seed=1,
            folder=tmp_path / name,
            progress=LineProgress(),
            what=name,
            phase=phase,
            tuning=Tuning(ModelState("base")),
            states=given,
        )
        found.append(load_file(tmp_path / name / "heads" / "heads.safetensors"))
    through, kept = found
    start = np.abs(through["0.weight"].numpy()).mean()
    for name in through:
        torch.testing.assert_close(through[name], kept[name], atol=1e-4 * start, rtol=1e-4)
    history = [list(read_jsonl(tmp_path / name / "history.jsonl")) for name in ("through", "kept")]
    losses = [[row["loss"] for row in rows] for rows in history]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] != losses[0][0]


@pytest.mark.parametrize("preset", ["seq_lin", "w_fixbc_cos"])
def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, tiny_model: Path, preset: str) -> None:
    whole = execute(recipe_of(tmp_path / "whole", tiny_model, preset=preset)).folder
    recipe = recipe_of(tmp_path / "killed", tiny_model, preset=preset)
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"checkpoint_every": 2})})
    with killed_at(8) as progress:
        execute(recipe, progress=progress)
    assert not (training_of(tmp_path / "killed" / "runs" / "tiny", 3)).exists()
    run = execute(recipe).folder
    for stage in (1, 2, 3):
        ours, theirs = heads_after(run, stage), heads_after(whole, stage)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["prediction"] for row in predicted(run, 3)] == [row["prediction"] for row in predicted(whole, 3)]


def test_moments_go_on_from_task_to_task_unless_told_otherwise(tmp_path: Path, tiny_model: Path) -> None:
    kept, fresh = (
        heads_after(
            execute(recipe_of(tmp_path / str(keeps), tiny_model, preset="fixb_cos", keep_moments=keeps)).folder, 2
        )
        for keeps in (True, False)
    )
    assert not torch.equal(kept["0.weight"], fresh["0.weight"])


def test_dropout_on_a_frozen_backbone_has_every_step_pass_through_it(tmp_path: Path, tiny_model: Path) -> None:
    found = []
    for passes in (True, False):
        recipe = recipe_of(tmp_path / str(passes), tiny_model, frozen_dropout=passes)
        model = recipe.model.model_copy(update={"dtype": "float32"})
        training = recipe.training.model_copy(update={"precision": "float32"})
        run = execute(recipe.model_copy(update={"model": model, "training": training})).folder
        found.append(heads_after(run, 2))
        assert (read_json(training_of(run, 2) / "summary.json")["tokens"] > 0) == passes  # type: ignore[index, call-overload]
        assert not (training_of(run, 2) / "adapter").exists()
    for name, through in found[0].items():  # the tiny model has no dropout, so nothing else differs
        torch.testing.assert_close(through, found[1][name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("rehearsal", "scenario"), [("random_rehearsal", "task_incremental"), ("experience_replay", "class_incremental")]
)
def test_rehearsed_rows_train_old_heads(tmp_path: Path, tiny_model: Path, rehearsal: str, scenario: str) -> None:
    recipe = recipe_of(tmp_path, tiny_model, scenario)
    method = MethodConfig.model_validate(
        [rehearsal, {"name": "seq", "preset": "w_fixbc_lin", "fix_old_heads": False, **RATE}]
    )
    run = execute(recipe.model_copy(update={"method": method})).folder
    assert list(read_jsonl(training_of(run, 2).parent / "rehearsal.jsonl"))
    assert not torch.equal(heads_after(run, 1)["0.weight"], heads_after(run, 2)["0.weight"])
    steps, first = read_json(run / "manifest.json")["steps"], training_of(run, 1).parent.name
    assert steps[f"stages/{training_of(run, 2).parent.name}/features/{TASKS[0]}/train"]["reused"], f"read in {first}"
    assert not any("/rehearsed" in place for place in steps), "no row of an earlier task is read once more"
    assert {row["finish_reason"] for row in predicted(run, 3)} == {"head"}


def test_what_is_handed_back_is_measured_as_in_the_run(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model)
    run = execute(recipe).folder
    found = evaluate(recipe, checkpoint=run / "model")
    values = read_json(run / "matrix.json")["values"][-1]  # type: ignore[index, call-overload]
    assert [found["tasks"][task]["values"]["accuracy"] for task in TASKS] == pytest.approx(values)
    with pytest.raises(ModelError, match=r"heads in .* were trained over other weights than the base, which is all"):
        evaluate(recipe, checkpoint=training_of(run, 3))
    path = run / "model" / "heads" / "heads.json"
    settings: Any = read_json(path)
    settings["tasks"][1]["classes"].reverse()
    write_json(path, settings)
    with pytest.raises(ModelError, match=r"belong to another class list of the task 'animals' \(their 'animals 2' is"):
        evaluate(recipe, checkpoint=run / "model")


def test_presets_are_the_rows_of_the_published_tables() -> None:
    def row(options: Any) -> tuple[object, ...]:
        warm_up = (options.warmup_epochs, options.warmup_target) if options.warms_up else (0, "")
        return options.fix_backbone, *warm_up, options.fix_old_heads, options.preallocated, options.head

    lm = (True, 1, "causal_lm", True)
    assert {name: row(make_method("seq", {"preset": name}).options) for name in PRESETS} == {
        "seq_lin": (False, 0, "", False, False, "linear"),
        "seq_cos": (False, 0, "", False, False, "cosine"),
        "fixb_cos": (True, 0, "", False, False, "cosine"),
        "fixc_cos": (False, 0, "", True, False, "cosine"),
        "fixbc_cos": (True, 0, "", True, False, "cosine"),
        "w_fixbc_lin": (*lm, False, "linear"),
        "p_w_fixbc_lin": (*lm, True, "linear"),
        "w_fixbc_cos": (*lm, False, "cosine"),
        "p_w_fixbc_cos": (*lm, True, "cosine"),
        "w_fixbc_proto": (True, 3, "classes", True, False, "prototype"),
    }
    assert row(make_method("seq", {}).options) == (*lm, False, "cosine")
    named = make_method("seq", {"preset": "w_fixbc_lin", "head": "cosine"}).options
    assert named.head == "cosine"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "seq_star"}, "preset: input should be 'seq_lin'"),
        ({"fix_backbone": False, "warmup_epochs": 2}, "warmup_epochs come before a frozen backbone"),
        ({"fix_backbone": False, "head": "prototype"}, "set fix_backbone: true"),
        ({"detached_features": True, "warmup_target": "classes"}, "a warm-up on classes moves nothing"),
        ({"fix_backbone": False, "frozen_dropout": True}, "set fix_backbone: true"),
        ({"head": "linear", "cosine_scale": 16}, "cosine_scale is a factor of cosines"),
        ({"head": "prototype", "frozen_dropout": True}, "set frozen_dropout: false"),
    ],
)
def test_switches_that_do_not_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_method("seq", options)


def test_a_stream_without_classes_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"method seq: it trains heads over classes.*set stream.scenario"):
        make_method("seq", {}).check(facts_of(number_stream()))
    facts = facts_of(with_classes(number_stream()))
    with pytest.raises(RecipeError, match=r"training\.sharding: fsdp"):
        make_method("seq", {}).check(replace(facts, training=TrainingConfig(sharding="fsdp")))


@pytest.mark.parametrize("other", ["ewc", "lwf", "gem", "ssr", "self_distillation", "olora"])
def test_methods_that_act_on_tokens_are_not_stacked_with_heads(other: str) -> None:
    with pytest.raises(RecipeError, match=rf"methods seq and {other} cannot be stacked"):
        assemble(MethodConfig.model_validate(["seq", other]))


@pytest.mark.parametrize("target", ["classes", "causal_lm"])
def test_the_warm_up_is_the_beginning_of_one_training(tmp_path: Path, tiny_model: Path, target: str) -> None:
    method = make_method("seq", {"warmup_epochs": 3, "warmup_target": target})
    stage = method.stages(with_classes(number_stream()))[0]
    context = Bench(tmp_path, tiny_model).context(stage)
    context = replace(context, training=TrainingConfig(epochs=2, batch_size=8))
    warm_up, training = method.phases(context)
    epoch = -(-len(stage.rows) // 8)
    assert (warm_up.steps, training.steps) == ((0, 3 * epoch), (3 * epoch, 5 * epoch))
    assert warm_up.changes["epochs"] == training.changes["epochs"] == 5
    assert (warm_up.heads is not None) == (target == "classes")
    assert training.moments == ("inherit" if target == "classes" else "fresh")
    assert training.heads is not None
    assert not training.heads.moves_backbone


@pytest.mark.parametrize("is_detached", [True, False])
def test_heads_move_the_backbone_unless_their_states_are_detached(
    tmp_path: Path, tiny_model: Path, is_detached: bool
) -> None:
    method = make_method("seq", {"preset": "seq_cos", "detached_features": is_detached})
    stage = method.stages(with_classes(number_stream()))[0]
    (phase,) = method.phases(Bench(tmp_path, tiny_model).context(stage))
    assert phase.heads is not None
    assert (phase.heads.moves_backbone, phase.heads.keeps_states) == (not is_detached, is_detached)
