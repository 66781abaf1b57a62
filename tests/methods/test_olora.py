"""O-LoRA: its penalty against the golden vectors, what moves, what is handed back, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.errors import RecipeError
from everlearn.files import read_json, read_jsonl
from everlearn.methods.olora import norms, overlap
from everlearn.methods.registry import make_method
from everlearn.models import loading
from everlearn.models.adapters import concatenated
from everlearn.models.state import ModelState, Part, Tuning
from everlearn.runs.loop import execute
from everlearn.training.influence import Training
from everlearn.training.phase import Phase
from tests.methods.contexts import Bench, Told, number_stream
from tests.models.test_state import config_of
from tests.runs import test_publish as publish
from tests.runs.test_loop import TASKS, tiny_recipe
from tests.tiny_models import save_tiny_model


def golden(golden_dir: Path) -> list[dict]:
    return json.loads((golden_dir / "baselines" / "olora.json").read_text())["cases"]


def tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


def past_of(case: dict) -> list[torch.Tensor]:
    """The A's of all earlier tasks below each other, by module."""
    return [torch.cat([torch.tensor(a, dtype=torch.float64) for a in case["previous_A"][m]]) for m in case["new_A"]]


def test_penalty_and_gradients_are_those_of_the_golden_vectors(golden_dir: Path) -> None:
    for case in golden(golden_dir):
        past, a, b = past_of(case), tensors(case["new_A"]), tensors(case["new_B"])
        own, new = list(a.values()), [*a.values(), *b.values()]
        assert overlap(past, own, "abs", "none").item() == pytest.approx(case["expected_orthogonal_abs"], abs=1e-6)
        assert float(norms(new)) == pytest.approx(case["expected_l2_norms"], abs=1e-6)
        penalty = case["lambda_1"] * overlap(past, own, "abs", "none") + case["lambda_2"] * norms(new)
        assert float(penalty) == pytest.approx(case["expected_penalty_code"], abs=1e-6)
        penalty.backward()
        for module in a:
            for kind, found in (("A", a[module].grad), ("B", b[module].grad)):
                expected = case["expected_grad_code"][f"{module}.loranew_{kind}"]
                wanted = torch.zeros_like(found) if expected is None else torch.tensor(expected, dtype=torch.float64)
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        squared = overlap(past, own, "squared", "none")
        assert float(squared) == pytest.approx(case["expected_orthogonal_squared"], abs=1e-6)
        found = torch.autograd.grad(case["lambda_1"] * squared, own)
        for module, gradient in zip(a, found, strict=True):
            expected = case["expected_grad_squared_times_lambda_1"]
            key = next(
                key for key in expected if (key.startswith(module) and "A" in key[len(module) :]) or key == module
            )
            torch.testing.assert_close(gradient, torch.tensor(expected[key], dtype=torch.float64), rtol=0, atol=1e-6)


def test_pairs_kept_as_one_are_those_of_the_golden_vectors(golden_dir: Path) -> None:
    for case in golden(golden_dir):
        module = case["module"]
        matrices = [
            zip(case[f"previous_{kind}"][module] + [case[f"new_{kind}"][module]], strict=True) for kind in "AB"
        ]
        pairs = [
            {"m.lora_A.weight": torch.tensor(a), "m.lora_B.weight": torch.tensor(b)}
            for (a,), (b,) in zip(*matrices, strict=True)
        ]
        a, b = concatenated(pairs).values()
        assert torch.equal(a, torch.tensor(case["expected_concatenated_A"]))
        assert torch.equal(b, torch.tensor(case["expected_concatenated_B"]))
        found = torch.tensor(case["x"]) @ (case["scaling"] * b @ a).T
        torch.testing.assert_close(found, torch.tensor(case["expected_delta_output"]), rtol=0, atol=1e-4)


def test_a_mean_does_not_grow_with_rank_or_modules() -> None:
    draw = torch.Generator().manual_seed(0)
    past, new = torch.randn(6, 9, generator=draw), torch.randn(2, 9, generator=draw)
    one = overlap([past], [new], "abs", "mean")
    double = overlap([torch.cat([past, past])] * 2, [torch.cat([new, new])] * 2, "abs", "mean")
    torch.testing.assert_close(one, double)
    assert float(overlap([past] * 2, [new] * 2, "abs", "none")) == pytest.approx(24 * float(one))


def test_the_norm_of_a_fresh_b_has_no_gradient_that_is_no_number() -> None:
    b = torch.zeros(3, 2, requires_grad=True)
    norms([b]).backward()
    assert torch.equal(b.grad, torch.zeros(3, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three stages."""
    root = tmp_path_factory.mktemp("olora")
    base = save_tiny_model(root / "base")
    lora = {"rank": 2, "alpha": 3, "dropout": 0.0}
    model = {"base": str(base), "lora": lora, "dtype": "float32", "device": "cpu"}
    evaluation = {"max_new_tokens": 2, "bootstrap_samples": 100, "general": False}
    options = {"name": "olora", "lambda_1": 0.05}
    return execute(tiny_recipe(root, base, method=options, evaluation=evaluation, model=model)).folder


def stages_of(folder: Path) -> list[Path]:
    return [folder / "stages" / f"{index:02d}-{task}" for index, task in enumerate(TASKS, 1)]


def test_earlier_pairs_stay_as_they_were_and_each_stage_adds_one(run: Path) -> None:
    found = [load_file(stage / "training" / "adapter" / "adapter_model.safetensors") for stage in stages_of(run)]
    for index, (adapter, before) in enumerate(zip(found, [None, *found], strict=False), 1):
        for name, weight in adapter.items():
            dimension = 0 if "lora_A" in name else 1
            assert weight.shape[dimension] == 2 * index
            if before is not None:
                old, new = weight.split([2 * (index - 1), 2], dimension)
                assert torch.equal(old, before[name])
                assert new.abs().sum() > 0
    settings = read_json(run / "model" / "adapter_config.json")
    assert (settings["r"], settings["lora_alpha"]) == (6, 9)


def test_the_penalty_acts_from_the_second_stage_on_and_falls(run: Path) -> None:
    histories = [list(read_jsonl(stage / "training" / "history.jsonl")) for stage in stages_of(run)]
    assert not any("penalty" in row for row in histories[0])
    for history in histories[1:]:
        assert history[0]["penalty"] > history[-1]["penalty"] > 0


def test_what_is_handed_back_answers_elsewhere_as_the_run_did(tmp_path: Path) -> None:
    folder = publish.base(tmp_path / "base", publish.CHATML)
    model = {"base": str(folder), "template": "chat", "dtype": "float32", "lora": {"rank": 4}}
    run = execute(publish.recipe_of(tmp_path, model, method={"name": "olora", "lambda_1": 0.01})).folder
    rows = publish.predictions(run)
    assert len({row["prediction"] for row in rows}) > 1
    assert read_json(run / "model" / "adapter_config.json")["r"] == 4 * len(publish.TASKS)
    assert publish.answers_elsewhere(run, tmp_path / "moved", rows) == [row["prediction"] for row in rows]


def test_full_tuning_is_refused_in_one_sentence_before_anything_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, method="olora")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"tuning": "full"})})
    with pytest.raises(RecipeError) as caught:
        execute(recipe)
    assert str(caught.value) == (
        "method olora: it gives each task an adapter of its own, and model.tuning: full has none: set model.tuning to "
        "lora."
    )
    assert not (tmp_path / "runs" / "tiny" / "stages").exists()


def test_earlier_adapters_that_are_not_there_are_no_penalty_of_zero(tiny_model: Path, tmp_path: Path) -> None:
    config = config_of(tiny_model)
    loading.save_checkpoint(loading.load_model(config, trainable=True, seed=1), tmp_path)
    (influence,) = make_method("olora", {}).influences(
        Bench(tmp_path, tiny_model).context(make_method("olora", {}).stages(number_stream())[1])
    )
    past = Part(tmp_path, "adapter", "past")
    model = loading.load_model(config, trainable=True, seed=2, beside=[past]).model
    for name, weight in model.named_parameters():
        if ".past." in name:
            weight.data.zero_()
    moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with pytest.raises(AssertionError, match="have been loaded"):
        influence.begin(Training(model, moving, [], weight.device, 0, 1, lambda rows: {}))


def test_more_rows_than_inputs_are_told(tmp_path: Path, tiny_model: Path) -> None:
    config = config_of(tiny_model)
    wide = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": 20})})
    loading.save_checkpoint(loading.load_model(wide, trainable=True, seed=1), tmp_path)
    told = Told()
    method = make_method("olora", {})
    context = Bench(tmp_path / "bench", tiny_model).context(method.stages(number_stream())[1])
    context = replace(context, state=ModelState("x", (Part(tmp_path, "adapter"),)), progress=told)
    (phase,) = method.phases(context)
    assert phase == Phase(tuning=Tuning(ModelState("x", (Part(tmp_path, "adapter", "past"),)), after="concatenate"))
    assert "have rank 40 together, more than the 32 inputs" in told.said[0]
