"""OSF: the weights of PEFT's tuner, that nothing leaks into what is kept, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import Enum
from pathlib import Path

import peft
import pytest
import torch
from peft import OSFConfig, get_peft_model
from safetensors.torch import load_file

from everlearn.errors import ModelError, RecipeError
from everlearn.methods.osf import LOW, OrthogonalSubspace, kept_directions, project_out
from everlearn.methods.registry import make_method
from everlearn.methods.stack import refuse_unfit
from everlearn.recipe import ModelConfig
from everlearn.runs.loop import execute
from everlearn.training.influence import OptimizerStep, Training
from tests.methods.contexts import facts_of, number_stream
from tests.runs import test_publish as publish
from tests.tiny_models import save_tiny_model


def wrapped(weight: torch.Tensor, preserved: int | float):
    """A linear layer of this weight under PEFT's tuner, and what of it moves."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight)
    layer.weight.data = weight.clone()
    model = get_peft_model(
        torch.nn.Sequential(layer), OSFConfig(effective_rank=preserved, target_modules=["0"]), adapter_name=LOW
    )
    return model, {name: value for name, value in model.named_parameters() if value.requires_grad}


def influence_on(model, moving) -> OrthogonalSubspace:
    influence = OrthogonalSubspace()
    influence.begin(Training(model, moving, [], torch.device("cpu"), 0, 1, lambda rows: {}))
    return influence


def trained(model, moving, x, y, optimizer, steps: int, influence: OrthogonalSubspace | None) -> torch.Tensor:
    """The weight after some steps on the squared error."""
    for number in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if influence:
            influence.after_step(OptimizerStep(number, [], moving, 0.1))
    return model.merge_and_unload()[0].weight.detach()


@pytest.mark.parametrize("project", ["weights", "gradient"])
def test_steps_of_sgd_are_those_of_the_golden_vectors(golden_dir: Path, project: str) -> None:
    cases = json.loads((golden_dir / "baselines" / "osf.json").read_text())["cases"]
    assert cases
    for case in cases:
        weight, x, y = (torch.tensor(case[name]) for name in ("W", "x", "y"))
        model, moving = wrapped(weight, case["preserved_rank"])
        influence = influence_on(model, moving) if project == "weights" else None
        optimizer = torch.optim.SGD(moving.values(), lr=case["learning_rate"])
        found = trained(model, moving, x, y, optimizer, case["steps"], influence)
        torch.testing.assert_close(found, torch.tensor(case["expected_W_after"]), rtol=0, atol=1e-5)
        assert not torch.allclose(found, weight, atol=1e-3)
        (left, right), change = kept_directions(weight, case["preserved_rank"]), found - weight
        for leak, name in ((left.T @ change, "U_high_T_delta"), (change @ right.T, "delta_V_high")):
            assert float(leak.abs().max()) == pytest.approx(case[f"expected_max_abs_{name}"], abs=1e-5)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_adamw_leaks_into_the_kept_directions_unless_the_weights_are_projected(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, x, y = (torch.randn(size, generator=draw) for size in (shape, (16, shape[1]), (16, shape[0])))
    left, right = kept_directions(weight, 4)
    leaks = {}
    for project in ("weights", "gradient"):
        model, moving = wrapped(weight, 4)
        influence = influence_on(model, moving) if project == "weights" else None
        optimizer = torch.optim.AdamW(moving.values(), lr=1e-2, weight_decay=0.1)
        change = trained(model, moving, x, y, optimizer, 50, influence) - weight
        leaks[project] = max(float((left.T @ change).norm()), float((change @ right.T).norm())) / float(change.norm())
    assert leaks["weights"] < 1e-5
    assert leaks["gradient"] > 1e-2


def test_what_is_projected_keeps_what_is_orthogonal_already() -> None:
    left, right = kept_directions(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 1)
    trained_left, trained_right = torch.eye(3)[:, 1:], torch.eye(3)[1:]
    for found, expected in zip(
        project_out(trained_left, trained_right, left, right), (trained_left, trained_right), strict=True
    ):
        torch.testing.assert_close(found, expected)
    leaked = project_out(trained_left + left, trained_right + right, left, right)
    torch.testing.assert_close(leaked[0], trained_left)
    torch.testing.assert_close(leaked[1], trained_right)


def test_stages_keep_what_they_have_learnt_and_what_is_handed_back_is_plain_transformers(tmp_path: Path) -> None:
    base = publish.base(tmp_path / "base", publish.CHATML)
    model = {"base": str(base), "template": "chat", "dtype": "float32", "tuning": "full"}
    method = {"name": "osf", "preserved": [0.25, 0.5]}
    folder = execute(publish.recipe_of(tmp_path / "run", model, method=method)).folder
    stages = [load_file(next(folder.glob(f"stages/{at:02d}-*/training/model/model.safetensors"))) for at in (1, 2)]
    weights = [load_file(base / "model.safetensors"), *stages]
    moved = [name for name in stages[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert moved
    assert all(name.endswith("_proj.weight") for name in moved)
    for before, after, share in zip(weights, weights[1:], method["preserved"], strict=False):
        for name in moved:
            left, right = kept_directions(before[name], int(min(before[name].shape) * share))
            change = after[name] - before[name]
            assert float(change.norm()) > 1e-3
            assert float((left.T @ change).norm()) + float((change @ right.T).norm()) < 1e-3 * float(change.norm())
    rows = publish.predictions(folder)
    assert publish.answers_elsewhere(folder, tmp_path / "moved", rows) == [row["prediction"] for row in rows]


def test_what_would_train_nothing_is_refused_before_training(tmp_path: Path) -> None:
    facts = facts_of(number_stream())
    with pytest.raises(RecipeError, match=r"set model\.tuning to full"):
        make_method("osf", {}).check(facts)

    def check(architecture: str, **options: object) -> None:
        folder = tmp_path / architecture
        if not folder.exists():
            save_tiny_model(folder, architecture)
        model = ModelConfig(base=str(folder), device="cpu", tuning="full")
        make_method("osf", options).check(replace(facts, model=model))

    check("llama")
    check("gpt_neox", targets=["query_key_value"])
    with pytest.raises(RecipeError, match=r"this gpt2 model has no layer that PEFT's OSF could decompose"):
        check("gpt2")
    with pytest.raises(ModelError, match=r"method\.osf\.targets: .* no linear layer 'q_porj': .* perhaps 'q_proj'"):
        check("llama", targets=["v_proj", "q_porj"])
    with pytest.raises(RecipeError, match=r"no layer .* among method\.osf\.targets \(\['c_attn'\]\)"):
        check("gpt2", targets=["c_attn"])
    with pytest.raises(RecipeError, match=r"preserved 0\.01 of the 16 directions of .*k_proj leaves none to keep"):
        check("llama", preserved=[0.5, 0.01])
    with pytest.raises(RecipeError, match="preserved"):
        make_method("osf", {"preserved": 1.0})


def test_a_peft_that_has_no_osf_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "PeftType", Enum("PeftType", ["LORA"]))
    with pytest.raises(RecipeError, match=rf"method osf: PEFT {peft.__version__} has no OSF yet: .*pip install"):
        make_method("osf", {}).check(facts_of(number_stream(), tuning="full"))


def test_an_anchor_at_the_base_is_refused_beside_parts_that_hide_it() -> None:
    """Parts switched off, the model is the stage's start and not the base."""
    with pytest.raises(RecipeError, match=r"osf and kl_anchor cannot be stacked .* is not at hand"):
        refuse_unfit([make_method("osf", {}), make_method("kl_anchor", {})])
