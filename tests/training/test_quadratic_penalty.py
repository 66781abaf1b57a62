"""The quadratic pull: value, gradient, pairing."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from everlearn.models.loading import load_model
from everlearn.models.parameters import tuned_parameters
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training.influence import OptimizerStep
from everlearn.training.quadratic_penalty import Anchored, Pull, decayed, quadratic_penalty, summed, values_of
from tests.methods.contexts import training_of

THETA = [torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])]
ANCHOR = [torch.tensor([0.5, 0.0]), torch.tensor([[5.0]])]
FISHER = [torch.tensor([2.0, 0.5]), torch.tensor([[0.25]])]


def test_the_penalty_is_the_sum_of_squares_worked_out_by_hand() -> None:
    assert quadratic_penalty(THETA, ANCHOR).item() == 0.25 + 4 + 4
    assert quadratic_penalty(THETA, ANCHOR, FISHER).item() == 0.5 + 2 + 1


def test_the_gradient_is_twice_the_weighted_distance() -> None:
    theta = [values.clone().requires_grad_() for values in THETA]
    quadratic_penalty(theta, ANCHOR, FISHER).backward()
    assert theta[0].grad.tolist() == [2.0, -2.0]  # 2 * F * (theta - theta*)
    assert theta[1].grad.tolist() == [[-1.0]]


def test_anchors_are_paired_by_name_with_what_training_moves(tiny_model: Path) -> None:
    model = load_model(ModelConfig(base=str(tiny_model), lora=LoraConfig(rank=2)), trainable=True).model
    pull = Pull(0.1, values_of(model))
    pull.begin(training_of(model))
    assert pull.penalty(()).item() == 0.0
    with torch.no_grad():
        first = next(iter(tuned_parameters(model).values()))
        first += 1.0
    assert pull.penalty(()).item() == pytest.approx(0.1 * first.numel(), rel=1e-5)
    pull.penalty(()).backward()
    frozen = [parameter for name, parameter in model.named_parameters() if name not in tuned_parameters(model)]
    assert all(parameter.grad is None for parameter in frozen)


def test_values_are_copies(tiny_model: Path) -> None:
    model = load_model(ModelConfig(base=str(tiny_model), tuning="full")).model
    values = values_of(model)
    before = {name: array.copy() for name, array in values.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert all(np.array_equal(values[name], before[name]) for name in values)


def test_values_of_another_model_are_refused(tiny_model: Path) -> None:
    model = load_model(ModelConfig(base=str(tiny_model), tuning="full")).model
    values = values_of(model)
    values.popitem()
    with pytest.raises(AssertionError, match="belong to the parameters in training"):
        Pull(0.1, values).begin(training_of(model))


def kept(anchor: list, weight: list, dtype: type = np.float64) -> Anchored:  # type: ignore[type-arg]
    return Anchored({"w": np.array(anchor, dtype)}, {"w": np.array(weight, dtype)})


def value_and_gradient(anchored: Anchored, theta: list, strength: float) -> tuple[float, np.ndarray]:  # type: ignore[type-arg]
    at = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    tensors = [[torch.from_numpy(one["w"])] for one in (anchored.anchors, anchored.weights)]
    value = strength * (quadratic_penalty([at], *tensors) + anchored.constant)
    return value.item(), torch.autograd.grad(value, at)[0].numpy()


def test_the_golden_pulls_of_several_stages(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "baselines" / "ewc_si_mas.json").read_text())["cases"]
    cases = [case for case in cases if case["part"] == "accumulate"]
    for case in cases:
        theta, strength, gamma = case["theta"], case["strength"], case["gamma"]
        stages = [kept(a, f) for a, f in zip(case["anchors"], case["fishers"], strict=True)]
        online = Anchored()
        for now, expected in zip(stages, case["expected_online_fisher_after_each"], strict=True):
            online = decayed(online, now, gamma)
            np.testing.assert_allclose(online.weights["w"], expected, atol=1e-6)
        value, gradient = value_and_gradient(online, theta, strength / 2)
        assert value == pytest.approx(case["expected_penalty_online_half"], abs=1e-6)
        np.testing.assert_allclose(gradient, case["expected_grad_online_half"], atol=1e-6)
        value, _ = value_and_gradient(online, theta, strength)
        assert value == pytest.approx(case["expected_penalty_online_mammoth"], abs=1e-6)
        value, gradient = value_and_gradient(reduce(summed, stages, Anchored()), theta, strength / 2)
        assert value == pytest.approx(case["expected_penalty_sum_over_tasks_half"], abs=1e-6)
        np.testing.assert_allclose(gradient, case["expected_grad_sum_over_tasks_half"], atol=1e-6)
        value, _ = value_and_gradient(decayed(online, stages[-1], 0.0), theta, strength)
        assert value == pytest.approx(case["expected_penalty_last_only_no_half"], abs=1e-6)
    assert cases


def test_a_sum_of_pulls_stays_where_no_stage_has_pulled() -> None:
    both = summed(kept([1.0, 2.0], [0.0, 3.0]), kept([5.0, 4.0], [0.0, 1.0]))
    assert both.anchors["w"].tolist() == [1.0, 2.5]
    assert both.weights["w"].tolist() == [0.0, 4.0]
    assert both.constant == 3.0 * 1.0 / 4.0 * 4.0


def test_a_sum_of_pulls_through_float32_files_keeps_its_value() -> None:
    draws = np.random.default_rng(0)
    theta = draws.normal(size=50)
    stages = [kept(draws.normal(size=50), draws.gamma(0.3, size=50), np.float32) for _ in range(6)]
    expected = sum(value_and_gradient(stage, list(theta), 1.0)[0] for stage in stages)
    total = Anchored()
    for stage in stages:
        total = summed(total, stage)
        total = Anchored.from_tensors(total.to_tensors("fisher"), "fisher", constant=total.constant)
    assert total.weights["w"].dtype == np.float32
    assert value_and_gradient(total, list(theta), 1.0)[0] == pytest.approx(expected, rel=1e-5)


def test_the_mean_weight_is_noted_once(tiny_model: Path) -> None:
    model = load_model(ModelConfig(base=str(tiny_model), lora=LoraConfig(rank=2)), trainable=True).model
    values = values_of(model)
    pull = Pull(0.1, values, {name: np.full_like(array, 2.0) for name, array in values.items()})
    pull.begin(training_of(model))
    steps = [OptimizerStep(number, (), {}, 0.1) for number in (0, 1)]
    for step in steps:
        pull.after_step(step)
    assert [{name: float(value) for name, value in step.notes.items()} for step in steps] == [
        {"mean_importance": 2.0},
        {},
    ]
