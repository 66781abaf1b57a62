"""I-LoRA: the golden vectors, which states are tied, and which adapter goes where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.errors import RecipeError
from everlearn.files import read_jsonl, sha256_of
from everlearn.methods.registry import make_method
from everlearn.models.loading import load_model
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.runs.loop import execute
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.influence import OptimizerStep, Training
from everlearn.training.rows import EncodedRow
from everlearn.training.slow_adapter import SlowAdapter, TieToSlow, gaps, kept_share
from tests.methods.contexts import facts_of, number_stream
from tests.runs import test_publish as publish
from tests.tiny_models import TARGETS, save_tiny_model


def golden(golden_dir: Path, part: str) -> list[dict]:
    cases = json.loads((golden_dir / "baselines" / "ilora.json").read_text())["cases"]
    found = [case for case in cases if case["part"] == part]
    assert found
    return found


def doubles(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def training_of(parameters: dict[str, torch.nn.Parameter], model: torch.nn.Module | None = None) -> Training:
    return Training(model or torch.nn.Module(), parameters, [], torch.device("cpu"), 0, 1, lambda rows: {})


def test_the_slow_weights_follow_as_in_the_golden_vectors(golden_dir: Path) -> None:
    for case in golden(golden_dir, "ema"):
        weight = torch.nn.Parameter(doubles(case["slow_before"]))
        influence = SlowAdapter(case["alpha_cap"], done=case["first_step_number"] - 1)
        influence.begin(training_of({"w": weight}))
        for number, fast in enumerate(case["fast_after_each_step"]):
            share = kept_share(case["first_step_number"] + number, case["alpha_cap"])
            assert share == pytest.approx(case["expected_alpha_each_step"][number], abs=1e-6)
            weight.data = doubles(fast)
            influence.after_step(OptimizerStep(number, [], {"w": weight}, 0.1))
            expected = doubles(case["expected_slow_each_step"][number])
            torch.testing.assert_close(influence.left()["w"], expected, rtol=0, atol=1e-6)
            resumed = SlowAdapter(case["alpha_cap"])
            resumed.begin(training_of({"w": weight}))
            resumed.load_state({name: value.clone() for name, value in influence.state().items()})
            assert torch.equal(resumed.left()["w"], influence.left()["w"])


def test_the_tie_is_that_of_the_golden_vectors(golden_dir: Path) -> None:
    for case in golden(golden_dir, "consistency"):
        slow = doubles(case["slow_hidden_states"])
        for sides in ("one_sided", "two_sided"):
            fast = doubles(case["fast_hidden_states"]).requires_grad_()
            found = gaps(fast, slow, sides).mean()  # type: ignore[arg-type]
            found.backward()
            assert found.item() == pytest.approx(case[f"expected_{sides}"], abs=1e-6)
            torch.testing.assert_close(fast.grad, doubles(case[f"expected_grad_{sides}"]), rtol=0, atol=1e-6)
        one_sided = gaps(doubles(case["fast_hidden_states"]), slow, "one_sided").mean().item()
        total = (case["ce_new"] + case["ce_memory"]) / 2 + case["weight"] * one_sided
        assert total == pytest.approx(case["expected_total_code"], abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_the_states_of_memory_rows_are_tied_layer_by_layer(architecture: str, is_packed: bool, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, dropout=0.0, targets=TARGETS[architecture])
    config = ModelConfig(base=str(save_tiny_model(tmp_path, architecture)), device="cpu", dtype="float32", lora=lora)
    model = load_model(config, trainable=True).model
    model.train()
    shared = tuple(range(4, 30))  # a beginning that is computed once
    rows = [
        EncodedRow((*shared, 7, 2), 27, group="own"),
        EncodedRow((*shared, 9, 11, 2), 27, group="memory"),
        EncodedRow((*shared, 31, 12, 13, 2), 28, group="memory"),
        EncodedRow((1, 8, 2), 2, group="memory"),
    ]
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    torch.manual_seed(1)
    slow = SlowAdapter(
        0.9, slow={name: torch.randn(weight.shape).mul(0.5).numpy() for name, weight in weights.items()}
    )
    slow.begin(training_of(weights, model))
    tie = TieToSlow(slow, "memory", 2.0, "one_sided")
    loss = AnswerLoss(model, pad_id=3)
    with loss.packed_where_equal(rows) as can_pack:
        assert can_pack
        loss.is_packed = is_packed
        parts = loss.micro_batches(rows, 31)
        assert len(parts) > 1
        terms = [tie.term(loss.seen(part, None, keeps_layers=True)[1]) for part in parts]
    found = sum(term for term in terms if term is not None) / tie.units(rows)
    squares, entries = 0.0, 0
    for row in rows[1:]:
        ids = torch.tensor([row.ids[:-1]])
        fast = model(input_ids=ids, output_hidden_states=True).hidden_states
        with slow.view():
            other = model(input_ids=ids, output_hidden_states=True).hidden_states
        for one, two in zip(fast, other, strict=True):
            difference = one - torch.maximum(one, two)
            squares += difference.detach().square().sum().item()
            entries += difference.numel()
    assert tie.units(rows) == sum(len(row.ids) - 1 for row in rows[1:])
    assert found.item() == pytest.approx(2.0 * squares / entries, rel=1e-4)
    found.backward()
    assert all(weight.grad is not None for weight in weights.values())


def inner(folder: Path, index: int, step: str) -> Path:
    return next(folder.glob(f"stages/{index:02d}-*/{step}/adapter/adapter_model.safetensors"))


def test_the_fast_adapter_goes_on_and_the_slow_one_is_measured_and_handed_back(tmp_path: Path) -> None:
    base = publish.base(tmp_path / "base", publish.CHATML)
    model = {"base": str(base), "template": "chat", "dtype": "float32", "lora": {"rank": 4}}
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2}
    runs = {
        name: execute(
            publish.recipe_of(tmp_path / name, model, method={"name": "ilora", **options}, training=training)
        ).folder
        for name, options in (("slow", {}), ("equal", {"keep": 0.0}), ("faithful", {"preset": "faithful"}))
    }
    folder = runs["slow"]
    for index in (1, 2):
        fast, slow = (load_file(inner(folder, index, step)) for step in ("training", "released"))
        assert fast.keys() == slow.keys()
        assert any(not torch.equal(fast[name], slow[name]) for name in fast)
    assert sha256_of(folder / "model" / "adapter_model.safetensors") == sha256_of(inner(folder, 2, "released"))
    history = list(read_jsonl(folder / "stages" / f"02-{publish.TASKS[1]}" / "training" / "history.jsonl"))
    assert all(row["term"] > 0 for row in history)
    assert all("term" not in row for row in read_jsonl(next(folder.glob("stages/01-*/training/history.jsonl"))))
    for index in (1, 2):  # a slow adapter that keeps nothing is the fast one
        fast, slow = (load_file(inner(runs["equal"], index, step)) for step in ("training", "released"))
        assert all(torch.equal(fast[name], slow[name]) for name in fast)
    assert not list(runs["faithful"].glob("stages/*/released"))
    rows = publish.predictions(folder)
    assert publish.answers_elsewhere(folder, tmp_path / "moved", rows) == [row["prediction"] for row in rows]


def test_presets_fill_in_what_is_left_out_and_full_tuning_is_refused() -> None:
    assert make_method("ilora", {}).options.keep == 0.99  # type: ignore[attr-defined]
    faithful = make_method("ilora", {"preset": "faithful", "restart": False}).options.model_dump()
    assert (faithful["keep"], faithful["consistency"], faithful["restart"]) == (0.25, "one_sided", False)
    facts = facts_of(number_stream())
    with pytest.raises(RecipeError, match=r"method ilora: .* set model\.tuning to lora"):
        make_method("ilora", {}).check(replace(facts, model=facts.model.model_copy(update={"tuning": "full"})))
