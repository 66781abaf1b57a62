"""The importance that training itself leaves: golden, and through the moments of an influence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from everlearn.training.checkpoint import left_by, save_left
from everlearn.training.influence import OptimizerStep, Training
from everlearn.training.path_integral import PathIntegral, add_to_path, importance_of
from everlearn.training.processes import here


def test_the_golden_path_and_importance(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "baselines" / "ewc_si_mas.json").read_text())["cases"]
    cases = [case for case in cases if case["part"] == "si"]
    for case in cases:
        start = before = torch.tensor(case["theta_at_stage_start"], dtype=torch.float64)
        path = torch.zeros_like(start)
        for gradient, after in zip(case["loss_gradient_before_each_step"], case["theta_after_each_step"], strict=True):
            add_to_path(path, torch.tensor(gradient), before, torch.tensor(after, dtype=torch.float64))
            before = torch.tensor(after, dtype=torch.float64)
        np.testing.assert_allclose(path, case["expected_path_sum"], atol=1e-6)
        omega = torch.tensor(case["omega_before"]) + importance_of(path, start, before, case["xi"])
        np.testing.assert_allclose(omega, case["expected_omega"], atol=1e-6)
    assert cases


def begun(weight: torch.nn.Parameter) -> PathIntegral:
    influence = PathIntegral(0.5)
    device = torch.device("cpu")
    influence.begin(Training(torch.nn.Module(), {"w": weight}, [], device, 0, 2, gradients_of=lambda rows: {}))
    return influence


def stepped(influence: PathIntegral, weight: torch.nn.Parameter, gradient: float, to: float) -> None:
    """One step whose gradient is changed before the weights move, as by a penalty and by clipping."""
    step = OptimizerStep(0, (), {"w": weight}, 0.1)
    weight.grad = torch.tensor([gradient])
    influence.after_backward(step)
    weight.grad.mul_(100.0)
    with torch.no_grad():
        weight.fill_(to)
    influence.after_step(step)


def test_the_gradient_is_that_of_the_loss_before_anything_else_and_a_checkpoint_carries_the_path(
    tmp_path: Path,
) -> None:
    whole = torch.nn.Parameter(torch.tensor([1.0]))
    influence = begun(whole)
    stepped(influence, whole, 2.0, 0.5)
    kept = {name: value.clone() for name, value in influence.state().items()}
    assert kept["w"].item() == 2.0 * 0.5
    resumed_weight = torch.nn.Parameter(torch.tensor([1.0]))
    resumed = begun(resumed_weight)
    with torch.no_grad():
        resumed_weight.fill_(0.5)  # the checkpoint's weights come after `begin`
    resumed.load_state(kept)
    for one, weight in ((influence, whole), (resumed, resumed_weight)):
        stepped(one, weight, -1.0, 0.75)
        assert one.left()["w"].item() == pytest.approx((1.0 + 0.25) / (0.25**2 + 0.5))
    save_left(tmp_path, [influence], here(torch.device("cpu")))
    assert left_by(PathIntegral, tmp_path)["w"].tolist() == influence.left()["w"].tolist()
