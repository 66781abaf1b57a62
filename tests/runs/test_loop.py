"""The stage loop end to end on a tiny model: folder, resume, sharing, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from everlearn.errors import RunError, UserError
from everlearn.files import read_json, read_vouched
from everlearn.models import loading
from everlearn.progress import LineProgress
from everlearn.recipe import MethodConfig, ModelConfig, Recipe, make_recipe
from everlearn.runs import measure
from everlearn.runs.claim import claim, recipe_of
from everlearn.runs.compare import compare, labels_of, planned
from everlearn.runs.loop import execute
from tests.killed import killed_at

TASKS = ("colours", "animals", "places")


def write_tasks(folder: Path) -> list[dict[str, object]]:
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    for task in TASKS:
        for kind, count in (("train", 12), ("evaluation", 4)):
            rows = [
                {
                    "instruction": f"Say the {task}.",
                    "input": f"{kind} thing {i} of {task}",
                    "output": f"{task} {i % 3}",
                }
                for i in range(count)
            ]
            (folder / f"{task}.{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entries.append(
            {
                "name": task,
                "train": str(folder / f"{task}.train.jsonl"),
                "evaluation": str(folder / f"{task}.evaluation.jsonl"),
                "demonstrations": 4,
            }
        )
    return entries


def tiny_recipe(folder: Path, base: Path, **sections: object) -> Recipe:
    tree: dict[str, object] = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "model": {"base": str(base), "lora": {"rank": 4}},
        "stream": {"tasks": write_tasks(folder / "data")},
        "method": "sequential",
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"max_new_tokens": 6, "bootstrap_samples": 100},
    }
    return make_recipe({**tree, **sections})


def test_a_run_leaves_a_folder_of_plain_files(tmp_path: Path, tiny_model: Path) -> None:
    result = execute(tiny_recipe(tmp_path, tiny_model))
    folder = result.folder
    for name in ("recipe.yaml", "manifest.json", "matrix.json", "metrics.json", "model/adapter_model.safetensors"):
        assert (folder / name).exists(), name
    for index, task in enumerate(TASKS, 1):
        stage = folder / "stages" / f"{index:02d}-{task}"
        assert (stage / "training" / "adapter" / "adapter_model.safetensors").exists()
        assert (stage / "training" / "history.jsonl").exists()
        for scored in TASKS:
            assert len((stage / "predictions" / scored / "predictions.jsonl").read_text().splitlines()) == 4
    manifest = read_json(folder / "manifest.json")
    assert manifest["status"] == "complete"  # type: ignore[index, call-overload]
    matrix = result.matrix
    assert matrix["tasks"] == list(TASKS)
    assert len(matrix["values"]) == 3  # type: ignore[arg-type]
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt")) + list(folder.rglob("*.pkl"))


def test_a_score_has_one_interval_wherever_it_stands_and_answers_the_recipes_length(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import everlearn.evaluation.tasks as tasks

    asked = set()

    def predict(*_: object, max_new_tokens: int, context_length: int, **__: object) -> list[dict[str, object]]:
        asked.add((max_new_tokens, context_length))
        row = {"prediction": "x", "gold": "x", "references": []}
        return [{**row, "scores": {name: float(at) ** 3 for name in measure.METRIC_NAMES}} for at in range(5)]

    monkeypatch.setattr(tasks, "predict_task", predict)
    evaluation = {"max_new_tokens": 6, "bootstrap_samples": 101, "confidence": 0.8, "general": False}
    recipe = tiny_recipe(tmp_path, tiny_model, evaluation=evaluation)
    result = execute(recipe)
    assert asked == {(6, loading.context_length(recipe.model))}
    for index, task in enumerate(TASKS):
        scores = read_json(result.folder / "stages" / f"{index + 1:02d}-{task}" / "scores.json")
        found = [scores["tasks"][name]["interval"] for name in TASKS]  # type: ignore[index, call-overload]
        assert found == result.matrix["intervals"][index]  # type: ignore[index]
        assert scores["general"] == {}  # type: ignore[index, call-overload]
    assert len({tuple(interval) for interval in found}) > 1


def test_the_final_model_loads_with_plain_peft(tmp_path: Path, tiny_model: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    folder = execute(tiny_recipe(tmp_path, tiny_model)).folder
    model = AutoPeftModelForCausalLM.from_pretrained(folder / "model")
    assert any("lora" in name for name, _ in model.named_parameters())


def test_a_run_stopped_in_any_stage_ends_with_the_same_scores(tmp_path: Path, tiny_model: Path) -> None:
    whole = execute(tiny_recipe(tmp_path / "whole", tiny_model))
    recipe = tiny_recipe(tmp_path / "stopped", tiny_model)
    moments = (
        (0, "answering animals"),
        (1, "training 02-animals"),
        (0, "answering places"),
        (0, "training 03-places"),
    )
    for report, of in moments:
        with killed_at(report, of) as progress:
            execute(recipe, progress=progress)
    resumed = execute(recipe_of(Path(recipe.runs_dir) / recipe.name))
    assert resumed.matrix == whole.matrix
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_matrix(tmp_path: Path, tiny_model: Path) -> None:
    import yaml

    recipe = tiny_recipe(tmp_path, tiny_model, method={"name": "random_rehearsal", "ratio": 0.5})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    whole = execute(recipe.model_copy(update={"runs_dir": str(tmp_path / "whole")}))
    command = [sys.executable, "-m", "everlearn", "run", str(path), "--quiet"]
    folder = tmp_path / "runs" / "tiny"
    for marker in ("stages/00-base/general", "stages/02-animals/rehearsal.jsonl", "stages/02-animals/training"):
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        limit = time.monotonic() + 120
        while not (folder / marker).exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-m", "everlearn", "resume", str(folder), "--quiet"], check=True)
    assert read_vouched(folder / "matrix.json") == whole.matrix
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("method", "starts"),
    [("sequential", [None, "01-colours", "02-animals"]), ("single_task", [None, None, None])],
)
def test_a_stage_starts_from_the_weights_that_its_method_names(
    method: str, starts: list[str | None], tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import everlearn.training.stage as trainer
    from everlearn.models import loading

    started: list[str | None] = []
    real = loading.load_model

    def load(config: ModelConfig, **given: Any) -> object:
        if given.get("trainable"):
            started.append(given["checkpoint"] and given["checkpoint"].parent.name)
        return real(config, **given)

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(trainer, "train_stage", lambda *_, **__: None)
    execute(tiny_recipe(tmp_path, tiny_model, method=method))
    assert started == starts


@pytest.mark.parametrize(
    ("method", "influences", "rows"),
    [
        ({"name": "l2"}, [0, 1, 1], [(task, task) for task in TASKS]),
        (
            {"name": "random_rehearsal", "ratio": 0.5},
            [0, 0, 0],
            [("colours", "colours"), ("animals", "colours"), ("places", "animals")],
        ),
    ],
)
def test_a_stage_is_trained_with_its_own_seed_its_own_rows_first_and_the_method_where_it_acts(
    method: dict[str, object],
    influences: list[int],
    rows: list[tuple[str, str]],
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import everlearn.training.stage as trainer
    from everlearn.models import loading

    seeds: dict[str, list[int]] = {"loaded": [], "trained": []}
    found: list[tuple[int, tuple[str, str]]] = []
    real = loading.load_model

    def load(config: ModelConfig, **given: Any) -> object:
        if given.get("trainable"):
            seeds["loaded"].append(given["seed"])
        return real(config, **given)

    def train(loaded: object, *, rows: list[Any], seed: int, mixture: Any, influences: Any, **_: object) -> None:
        seeds["trained"].append(seed)
        all_rows = [*rows, *mixture.rows]
        found.append((len(influences), (all_rows[0].task, all_rows[-1].task)))

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(trainer, "train_stage", train)
    execute(tiny_recipe(tmp_path, tiny_model, method=method))
    assert found == list(zip(influences, rows, strict=True))
    assert seeds["loaded"] == seeds["trained"]
    assert len(set(seeds["trained"])) == 3


def test_nothing_is_trained_or_predicted_twice(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import everlearn.training.stage as trainer

    recipe = tiny_recipe(tmp_path, tiny_model)
    execute(recipe)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained twice")

    monkeypatch.setattr(trainer, "train_stage", refuse)
    execute(recipe)
    execute(recipe.model_copy(update={"name": "again"}))


def test_compared_methods_share_the_first_stage(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    methods = [
        MethodConfig(name="sequential"),
        MethodConfig.model_validate({"name": "random_rehearsal", "ratio": 0.5}),
        MethodConfig(name="l2"),
    ]
    compare(recipe, methods)
    folder = Path(recipe.runs_dir) / recipe.name
    comparison = read_json(folder / "comparison.json")
    runs = [folder / entry["folder"] for entry in comparison["runs"]]  # type: ignore[index, call-overload]
    steps = [read_json(run / "manifest.json")["steps"] for run in runs]  # type: ignore[index, call-overload]
    first = "stages/01-colours/training"
    assert [step[first]["reused"] for step in steps] == [False, True, True]
    assert len({step[first]["fingerprint"] for step in steps}) == 1
    assert len({step["stages/02-animals/training"]["fingerprint"] for step in steps}) == 3


def test_the_folder_of_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    execute(recipe)
    other = tiny_recipe(tmp_path, tiny_model, training={"epochs": 2, "batch_size": 4, "learning_rate": 1e-2})
    with pytest.raises(RunError, match=r"another recipe \(it differs in training\.epochs\).*--name"):
        execute(other)


@pytest.mark.parametrize("content", [b"name: [", b"", b"\xff\xfe\x00"])
def test_a_corrupt_recipe_of_a_run_is_refused_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    for read in (lambda: recipe_of(tmp_path), lambda: claim(tmp_path, make_recipe({}))):
        with pytest.raises(RunError, match=r"recipe\.yaml is corrupt .*delete this file.*finished steps are kept"):
            read()


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": {}}'])
def test_a_corrupt_plan_of_a_comparison_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(RunError, match=r"plan\.json is corrupt: give the comparison's own command again"):
        planned(tmp_path)


def test_what_auto_means_for_a_model_is_kept_and_told(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    assert recipe.model.lora.targets == "auto"
    lines: list[str] = []
    progress = LineProgress()
    progress.say = lines.append  # type: ignore[method-assign]
    folder = execute(recipe, progress=progress).folder
    assert "adapters on q_proj, v_proj (model.lora.targets: auto)" in lines
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["model"]["lora"]["targets"] == ["q_proj", "v_proj"]
    assert json.loads((folder / "manifest.json").read_text())["model"]["adapters_on"] == "q_proj, v_proj"
    claim(folder, recipe)  # the same recipe, though it says auto
    named = recipe.model.lora.model_copy(update={"targets": ["q_proj"]})
    with pytest.raises(RunError, match=r"it differs in model\.lora\.targets"):
        claim(folder, recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": named})}))


def test_a_comparison_of_another_recipe_is_refused_and_its_plan_kept(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    folder = Path(recipe.runs_dir) / recipe.name
    claim(folder / "l2-s42", recipe.model_copy(update={"name": "l2-s42", "method": MethodConfig(name="l2")}))
    (folder / "l2-s42" / "manifest.json").write_text('{"method": {}}')
    (folder / "plan.json").write_text("{}")
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 2})})
    with pytest.raises(RunError, match=r"l2-s42 holds a run of another recipe \(it differs in training\.epochs\)"):
        compare(other, [MethodConfig(name="sequential"), MethodConfig(name="l2")])
    assert (folder / "plan.json").read_text() == "{}"
    assert not list(folder.rglob("stages"))


def test_a_prompt_longer_than_the_context_is_refused_before_training(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    path = tmp_path / "data" / "places.evaluation.jsonl"
    path.write_text(json.dumps({"instruction": "Say.", "input": "long " * 2000, "output": "x", "id": "giant"}) + "\n")
    with pytest.raises(UserError, match=r"'places'.*'giant'.*context"):
        execute(recipe)
    assert not (Path(recipe.runs_dir) / "tiny" / "stages").exists()


def test_a_training_row_longer_than_the_context_is_refused_before_the_first_stage(
    tmp_path: Path, tiny_model: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    path = tmp_path / "data" / "places.train.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"instruction": "Say.", "input": "long " * 2000, "output": "x", "id": "giant"}) + "\n")
    for act in (lambda: execute(recipe), lambda: compare(recipe, [MethodConfig(name="sequential")])):
        with pytest.raises(UserError, match=r"'places', training row giant.*context.*max_prompt_tokens"):
            act()
    assert not list(tmp_path.rglob("stages"))


def test_an_unknown_metric_is_refused_with_its_task(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    tasks = [{**task.model_dump(), "metric": "rouge"} for task in recipe.stream.tasks]  # type: ignore[union-attr]
    with pytest.raises(UserError, match="task colours: unknown metric 'rouge': did you mean 'rouge_l'"):
        execute(tiny_recipe(tmp_path, tiny_model, stream={"tasks": tasks}))


def test_prompts_of_a_compared_method_are_checked_before_any_training(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    rows = [{"instruction": "Say.", "input": f"long {i} " * 100, "output": "x"} for i in range(12)]
    (tmp_path / "data" / "colours.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    methods = [MethodConfig(name="sequential"), MethodConfig.model_validate({"name": "ssr", "preset": "improved"})]
    for act in (
        lambda: compare(recipe, methods),
        lambda: execute(recipe.model_copy(update={"method": methods[1]})),
    ):
        with pytest.raises(UserError, match=r"task colours: even the shortest synthesis prompt.*`demonstrations`"):
            act()
    assert not list(tmp_path.rglob("stages"))


def test_options_that_cannot_work_on_the_data_are_refused_before_any_training(
    tmp_path: Path, tiny_model: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, method={"name": "ssr", "demonstrations": 9})
    for act in (
        lambda: execute(recipe),
        lambda: compare(recipe, [MethodConfig(name="sequential"), recipe.method]),
    ):
        with pytest.raises(UserError, match="has 4 demonstrations but a prompt shows 9"):
            act()
    assert not list(tmp_path.rglob("stages"))


def test_what_a_tolerant_stream_sets_aside_is_said(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    with (tmp_path / "data" / "colours.train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Say.", "input": "nothing"}) + "\n")
    tasks = [task.model_dump() for task in recipe.stream.tasks]  # type: ignore[union-attr]
    recipe = tiny_recipe(tmp_path / "b", tiny_model, stream={"tasks": tasks[:1], "bad_rows": "tolerant"})
    lines: list[str] = []
    execute(recipe, progress=LineProgress(lines.append))
    assert any("rows cannot be used and are set aside in" in line for line in lines)


def test_methods_are_labelled_by_what_tells_them_apart() -> None:
    methods = [
        MethodConfig(name="ewc"),
        MethodConfig.model_validate({"name": "ssr", "preset": "faithful"}),
        MethodConfig.model_validate({"name": "ssr", "preset": "improved"}),
    ]
    assert labels_of(methods) == ["ewc", "ssr preset=faithful", "ssr preset=improved"]
