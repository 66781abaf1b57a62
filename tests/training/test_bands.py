"""Bands of hidden units: GeRe's golden thresholds and margins, and the two bits an element that are kept of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from everlearn.training.bands import (
    HIGH,
    LOW,
    band_of,
    excess,
    mean_and_deviation,
    pack_states,
    states_in,
    unpack_states,
)
from everlearn.training.imitation import mean_of

GOLDEN = Path(__file__).parents[1] / "golden" / "gere"
NAMES = {0: "mid", LOW: "low", HIGH: "high", LOW + HIGH: "low+high"}


def cases(file: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in json.loads((GOLDEN / file).read_text())["cases"]]


def margin(before: Tensor, now: Tensor, band: Tensor) -> tuple[Tensor, int, Tensor]:
    """Loss, violations, and the gradient of the states now."""
    now = now.clone().requires_grad_()
    each = excess(now, unpack_states(pack_states(states_in(before, band)), before.shape[1]), band)
    count = (each != 0).sum()
    loss = mean_of(each.sum(), count)
    loss.backward()
    return loss.detach(), int(count), now.grad


@pytest.mark.parametrize("case", cases("thresholds.json"))
def test_thresholds(case: dict) -> None:
    count, mean, deviation = mean_and_deviation([torch.tensor(rows) for rows in case["hidden_rows"]])
    assert count == case["expected_count"]
    lower, upper = band_of(mean, deviation, case["sigma_multiple"])
    for found, name in ((mean, "mean"), (deviation, "std"), (lower, "lower"), (upper, "upper")):
        expected = torch.tensor(case[f"expected_{name}"], dtype=found.dtype)
        is_loose = name != "mean" and "constant" in case["id"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3 if is_loose else 1e-5)


@pytest.mark.parametrize("case", cases("tm_loss.json"))
def test_margin(case: dict) -> None:
    before, now = (torch.cat([torch.tensor(row) for row in case[f"{at}_hidden"]]) for at in ("base", "current"))
    band = torch.tensor([case["lower"], case["upper"]])
    states = states_in(before, band)
    assert [[NAMES[int(state)] for state in row] for row in states] == [
        r for text in case["expected_states"] for r in text
    ]
    loss, violations, gradient = margin(before, now, band)
    assert violations == case["expected_violations"]
    torch.testing.assert_close(loss, torch.tensor(case["expected_loss"]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        gradient, torch.cat([torch.tensor(row) for row in case["expected_grad"]]), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("width", [1, 3, 4, 7])
def test_four_states_take_a_byte(width: int) -> None:
    states = torch.randint(0, 4, (5, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(width))
    packed = pack_states(states)
    assert (packed.dtype, packed.shape) == (torch.uint8, (5, -(-width // 4)))
    assert torch.equal(unpack_states(packed, width), states)


def test_moves_within_the_ranges_cost_nothing() -> None:
    before = torch.tensor([[-2.0, 0.0, 2.0]])
    band = torch.tensor([[-1.0] * 3, [1.0] * 3])
    loss, violations, gradient = margin(before, torch.tensor([[-1.0, 0.9, 50.0]]), band)
    assert (float(loss), violations, gradient.abs().max()) == (0.0, 0, 0.0)
