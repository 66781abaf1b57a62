"""The empirical Fisher information by hand and against single-row backward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from everlearn.models.loading import LoadedModel, load_model
from everlearn.models.parameters import tuned_parameters
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training.fisher import fisher_information, mean_squared_gradients
from everlearn.training.rows import EncodedRow

ROWS = [EncodedRow((1, 10, 11, 12, 2), 3), EncodedRow((1, 20, 21, 22, 23, 24, 2), 2), EncodedRow((1, 30, 2), 2)]


def test_three_losses_of_two_parameters_by_hand() -> None:
    w = torch.tensor([2.0, -1.0], requires_grad=True)
    unused = torch.tensor([1.0], requires_grad=True)
    losses = (
        0.5 * (w @ torch.tensor(x) - y) ** 2 for x, y in (([1.0, 0.0], 1.0), ([0.0, 2.0], 0.0), ([1.0, 1.0], 1.0))
    )
    # residuals 1, -2, 0; gradients (1, 0), (0, -4), (0, 0)
    fisher, nothing = mean_squared_gradients(losses, [w, unused])
    assert fisher.tolist() == pytest.approx([1 / 3, 16 / 3])
    assert nothing.tolist() == [0.0]


def test_squares_are_of_single_rows_not_of_their_mean() -> None:
    w = torch.tensor([1.0], requires_grad=True)
    (fisher,) = mean_squared_gradients((sign * w.sum() for sign in (1.0, -1.0)), [w])
    assert fisher.tolist() == [1.0]  # the mean gradient is zero


def test_many_small_squares_of_bfloat16_gradients_are_not_lost() -> None:
    w = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    gradient = 1.0078125  # the next number after 1; its square is none of this format
    (fisher,) = mean_squared_gradients(((gradient * w).sum() for _ in range(1000)), [w])
    assert fisher.tolist() == pytest.approx([gradient**2], rel=1e-5)


def loaded(folder: Path, tuning: str) -> LoadedModel:
    return load_model(
        ModelConfig(base=str(folder), tuning=tuning, dtype="float32", lora=LoraConfig(rank=2, dropout=0.5)),
        trainable=True,
        seed=1,
    )


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_information_equals_a_plain_computation(tiny_model: Path, tuning: str) -> None:
    model = loaded(tiny_model, tuning)
    model.model.train()
    with torch.no_grad():
        for parameter in tuned_parameters(model.model).values():
            parameter += 0.01  # an adapter that begins at zero would hide its dropout
    found = fisher_information(model, ROWS)
    expected: dict[str, torch.Tensor] = {}
    model.model.eval()
    for row in ROWS:
        model.model.zero_grad()
        logits = model.model(torch.tensor([row.ids])).logits[0]
        answer = torch.tensor(row.ids[row.prompt_length :])
        cross_entropy(logits[row.prompt_length - 1 : -1], answer).backward()
        for name, parameter in tuned_parameters(model.model).items():
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            expected[name] = expected.get(name, torch.zeros_like(parameter)) + gradient**2 / len(ROWS)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-4, atol=1e-10)
    assert sum(float(values.sum()) for values in found.values()) > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tiny_model: Path, training: bool) -> None:
    model = loaded(tiny_model, "lora")
    model.model.requires_grad_(False)
    model.model.train(training)
    before = {name: values.clone() for name, values in model.model.state_dict().items()}
    fisher_information(model, ROWS)
    assert model.model.training == training
    for name, parameter in model.model.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(before[name], model.model.state_dict()[name])
