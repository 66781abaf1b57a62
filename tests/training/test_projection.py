"""A-GEM's and GEM's projections: the golden cases, what they promise, and gradients that are degenerate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from everlearn.training.projection import cone_weights, turn_from, turn_into_cone

GOLDEN = Path(__file__).parents[1] / "golden" / "baselines"
VECTORS = arrays(np.float64, 6, elements=st.floats(-2, 2, width=32))


def cases(name: str) -> list[dict]:
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def tensors(values: list) -> list[torch.Tensor]:
    """One tensor, or a list of them."""
    return [torch.tensor(one, dtype=torch.float64) for one in values]


@pytest.mark.parametrize("case", cases("agem_projection"), ids=lambda case: case["id"])
def test_the_recorded_projections_of_agem(case: dict) -> None:
    if "gradients" in case:
        gradient, reference = tensors(case["gradients"]), tensors(case["reference_gradients"])
        expected, violated = tensors(case["expected_projected_tensors"]), True
    else:
        gradient, reference = tensors([case["gradient"]]), tensors([case["reference_gradient"]])
        expected, violated = tensors([case["expected_projected"]]), case["expected_violated"]
    dot = sum(float((one * other).sum()) for one, other in zip(gradient, reference, strict=True))
    assert dot == pytest.approx(case["expected_dot"], abs=1e-9)
    assert bool(turn_from(gradient, reference)) == violated
    for found, value in zip(gradient, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", cases("gem_projection"), ids=lambda case: case["id"])
def test_the_recorded_projections_of_gem(case: dict) -> None:
    memories = [tensors([one]) for one in case["memory_gradients"]]
    kinds = [(False, case["eps"], "expected_projected")]
    if "relative_eps_factor" in case:
        kinds.append((True, case["relative_eps_factor"], "expected_projected_relative_eps"))
    for is_relative, epsilon, expected in kinds:
        gradient = tensors([case["gradient"]])
        found = turn_into_cone(gradient, memories, margin=case["margin"], epsilon=epsilon, relative=is_relative)
        np.testing.assert_allclose(found, case["expected_dot_products"], atol=1e-8)
        assert bool((found < 0).any()) == case["expected_violated"]
        torch.testing.assert_close(gradient, tensors([case.get(expected, case["gradient"])]), rtol=0, atol=1e-8)
        if not is_relative and "expected_dot_products_after" in case:
            after = gram_and_dots(gradient[0].tolist(), case["memory_gradients"])[1]
            np.testing.assert_allclose(after, case["expected_dot_products_after"], atol=1e-8)
        if (kept := expected.replace("projected", "v")) in case:
            gram, dots = gram_and_dots(case["gradient"], case["memory_gradients"])
            factor = float(np.diagonal(gram).mean()) if is_relative else 1.0
            weights = cone_weights(gram, dots, case["margin"], epsilon * factor)
            np.testing.assert_allclose(weights, case[kept], atol=1e-8)


def gram_and_dots(gradient: list[float], memories: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array(memories)
    return rows @ rows.T, rows @ np.array(gradient)


@given(VECTORS, st.lists(VECTORS, min_size=1, max_size=6), st.sampled_from([0.0, 0.1, 0.5]))
def test_the_weights_are_the_least_of_the_quadratic_programme_whatever_the_gradients(
    gradient: np.ndarray, memories: list[np.ndarray], margin: float
) -> None:
    rows = np.stack(memories)
    gram, dots = rows @ rows.T, rows @ gradient
    found = cone_weights(gram, dots, margin, 1e-3)
    slope = gram @ found + 1e-3 * found + dots  # the conditions of Karush, Kuhn and Tucker
    scale = 1e-7 * (1 + np.abs(gram).max() + np.abs(dots).max())
    assert (found >= margin).all()
    assert (slope >= -scale).all()
    assert np.abs(slope * (found - margin)).max() <= scale * (1 + found.max())


def test_gradients_that_depend_on_each_other_or_vanish_are_no_obstacle_without_epsilon() -> None:
    one = [1.0, -1.0, 0.5]
    gradient = tensors([[-1.0, 0.5, 0.0]])
    memories = [tensors([row]) for row in (one, one, [2.0, -2.0, 1.0], [0.0, 0.0, 0.0])]
    turn_into_cone(gradient, memories, margin=0.0, epsilon=0.0, relative=True)
    assert abs(float(gradient[0] @ torch.tensor(one, dtype=torch.float64))) < 1e-12


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_is_left_to_the_look_at_the_loss(value: float) -> None:
    memories = [tensors([[1.0, 1.0]]), tensors([[value, 1.0]])]
    gradient = tensors([[-2.0, 1.0]])
    turn_into_cone(gradient, memories, margin=0.5, epsilon=1e-3, relative=True)
    assert (gradient[0] == tensors([[-2.0, 1.0]])[0]).all() == (value != 0.0)


def test_a_memory_without_a_gradient_changes_nothing() -> None:
    gradient = tensors([[-2.0, 1.0], [3.0]])
    assert not turn_from(gradient, tensors([[0.0, 0.0], [0.0]]))
    assert [one.tolist() for one in gradient] == [[-2.0, 1.0], [3.0]]
