"""Divergences between two models: the golden cases, and the other view of a model in training."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from everlearn.training.divergences import divergence

GOLDEN = Path(__file__).parents[1] / "golden" / "baselines"


def cases(name: str) -> list[dict]:
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def logits(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


VARIANTS = {
    "forward_kl_t2_token_mean": ("forward", 2),
    "forward_kl_no_t2": ("forward", 0),
    "reversed_kl_no_t2": ("reverse", 0),
    "soft_cross_entropy_no_t2": ("forward", 0),
}


@pytest.mark.parametrize(
    "case", [one for one in cases("kd_loss") if one["variant"] in VARIANTS], ids=lambda c: c["id"]
)
def test_the_recorded_distillation_losses_and_gradients(case: dict) -> None:
    direction, power = VARIANTS[case["variant"]]
    student, tau = logits(case["student_logits"]).requires_grad_(), case["temperature"]
    terms = divergence(student, logits(case["teacher_logits"]), direction=direction, temperature=tau)  # type: ignore[arg-type]
    loss = tau**power * terms.mean()
    if case["variant"].startswith("soft_cross_entropy"):  # it has the entropy of the teacher more, and its gradient
        chances = (logits(case["teacher_logits"]) / tau).softmax(-1)
        loss = loss - (chances * chances.log()).sum(-1).mean()
    assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad, logits(case["expected_grad_student"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    [*(one for one in cases("kd_loss") if "labels" in one), *(one for one in cases("divergences") if "labels" in one)],
    ids=lambda case: case["id"],
)
def test_the_recorded_sums_of_cross_entropy_and_divergence_at_the_predicting_positions(case: dict) -> None:
    student, labels = logits(case["student_logits"]).requires_grad_(), torch.tensor(case["labels"])[:, 1:]
    other, is_answer, tau = (
        logits(case.get("teacher_logits", case.get("base_logits"))),
        labels != -100,
        case["temperature"],
    )
    is_lwf = "alpha" in case
    terms = partial(
        divergence, direction=case.get("direction", "forward"), temperature=tau, beta=case.get("beta", 0.5)
    )
    found = terms(student[:, :-1][is_answer], other[:, :-1][is_answer]).mean() * (tau**2 if is_lwf else 1)
    plain = cross_entropy(student[:, :-1][is_answer], labels[is_answer])
    assert found.item() == pytest.approx(case["expected_kd" if is_lwf else "expected_divergence"], abs=1e-6)
    assert plain.item() == pytest.approx(case["expected_ce"], abs=1e-6)
    loss = plain + case["alpha" if is_lwf else "strength"] * found
    assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad, logits(case["expected_grad_student"]), rtol=0, atol=1e-6)
    if is_lwf:
        assert abs(case["kd_without_shift"] - found.item()) > 1e-3


@pytest.mark.parametrize("case", [one for one in cases("divergences") if "sdft_alpha" in one], ids=lambda c: c["id"])
def test_the_recorded_divergences_by_token(case: dict) -> None:
    alpha = case["sdft_alpha"]  # of the teacher in the mixture, where ours is 1 - beta: the same at 1/2
    direction = {0.0: "forward", 1.0: "reverse"}.get(alpha, "jsd")
    student = logits(case["student_logits"]).requires_grad_()
    terms = divergence(student, logits(case["teacher_logits"]), direction=direction)  # type: ignore[arg-type]
    torch.testing.assert_close(terms.detach(), logits(case["expected_divergence_per_token"]), rtol=0, atol=1e-6)
    terms.mean().backward()
    torch.testing.assert_close(student.grad, logits(case["expected_grad_of_mean"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_a_divergence_is_zero_between_equals_and_positive_else(beta: float) -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(5, 9, generator=draw), torch.randn(5, 9, generator=draw)
    for direction in ("forward", "reverse", "jsd"):
        assert divergence(one, one + 3.0, direction=direction, beta=beta).abs().max() < 1e-6  # type: ignore[arg-type]
        assert divergence(one, other, direction=direction, beta=beta).min() > 0  # type: ignore[arg-type]
