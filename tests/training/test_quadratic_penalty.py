"""The quadratic pull: value, gradient, pairing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everlearn.models.loading import load_model
from everlearn.models.parameters import tuned_parameters
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training.quadratic_penalty import Pull, quadratic_penalty, values_of
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
