"""The schedules against the golden vectors, their stated properties, and LambdaLR."""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from everlearn.training.schedules import (
    FACTORS,
    Schedule,
    branch_cosine,
    branch_linear,
    branch_multistep,
    cosine,
    knee,
    multistep,
)

NAMES = {"L": "length", "Lb": "length", "W": "warm_up", "r": "floor", "C": "cycle", "E": "explore"}


def golden(golden_dir: Path, name: str) -> list[dict]:
    return json.loads((golden_dir / "lr_path_switching" / name).read_text())


def test_every_golden_value_is_met(golden_dir: Path) -> None:
    checked = 0
    for case in golden(golden_dir, "schedules.json"):
        function, names = FACTORS[case["schedule"]]
        parameters = {NAMES[key]: value for key, value in case.items() if key in NAMES}
        parameters = {key: value for key, value in parameters.items() if key in names}
        for step, expected in case["values"]:
            assert function(step, **parameters) == pytest.approx(expected, rel=1e-9, abs=1e-12), (case, step)
            checked += 1
    assert checked > 40


def test_final_rate_of_a_longer_cycle(golden_dir: Path) -> None:
    for case in golden(golden_dir, "stage1_cycle_length.json"):
        cycle = math.inf if case["k"] == "inf" else case["k"] * 1000
        found = cosine(1000, length=1000, floor=case["r"], cycle=cycle)
        assert found == pytest.approx(case["final_factor"], rel=1e-9, abs=1e-12)


@given(length=st.integers(1, 500), floor=st.floats(0, 1))
def test_a_branch_begins_at_the_maximal_rate_and_decays_completely(length: int, floor: float) -> None:
    for branch in (branch_cosine, branch_linear):
        factors = [branch(step, length=length, floor=floor) for step in range(length + 1)]
        assert factors[0] == 1.0
        assert factors[-1] == pytest.approx(floor, abs=1e-12)
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(factors))
    plateaus = [branch_multistep(step, length=length) for step in range(length)]
    assert plateaus.count(0.316) == math.ceil(length / 2)
    assert plateaus == sorted(plateaus, reverse=True)


@given(length=st.integers(1, 300), warm_up=st.integers(0, 300), floor=st.floats(0, 1), step=st.integers(-5, 700))
def test_factors_stay_between_zero_and_one(length: int, warm_up: int, floor: float, step: int) -> None:
    for value in (
        cosine(step, length=length, warm_up=warm_up, floor=floor),
        knee(step, length=length, warm_up=warm_up, explore=length // 2, floor=floor),
        multistep(step, length=length, warm_up=warm_up),
    ):
        assert 0 <= value <= 1


@pytest.mark.parametrize(
    "schedule",
    [
        partial(cosine, length=20, warm_up=4),
        Schedule("knee", length=20, warm_up=2, explore=6, floor=0.0),
        Schedule("constant", warm_up=30, offset=10),
    ],
)
def test_lambda_lr_applies_the_factor_of_each_step(schedule) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = LambdaLR(optimizer, schedule)
    for step in range(25):
        assert optimizer.param_groups[0]["lr"] == 0.5 * schedule(step)
        optimizer.step()
        scheduler.step()


def test_the_main_path_goes_on_counting_its_warm_up() -> None:
    whole = Schedule("constant", warm_up=10)
    tail = Schedule("constant", warm_up=10, offset=6)
    assert [tail(step) for step in range(8)] == [whole(step) for step in range(6, 14)]


def test_a_scaled_schedule_and_a_branch_of_another_cycle_keep_to_their_parameters() -> None:
    assert Schedule("constant", scale=0.1)(5) == 0.1
    assert Schedule("branch_cosine", length=6, cycle=math.inf)(6) == 1.0


def test_a_cosine_that_ends_with_its_warm_up_ends_at_its_floor() -> None:
    assert Schedule("cosine", length=10, warm_up=10, floor=0.25)(10) == 0.25


def test_a_schedule_is_plain_json() -> None:
    assert Schedule("branch_cosine", length=6, cycle=math.inf).to_json() == {
        "name": "branch_cosine",
        "length": 6,
        "floor": 0.1,
        "cycle": "inf",
        "offset": 0,
        "scale": 1.0,
    }
