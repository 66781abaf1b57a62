"""Costs against the golden ones, the 58 % of the paper, and the agreement of formula and plan."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.updates.cost import cpt_steps, flops_per_token, ledger, path_switching_steps, planned, ptfs_steps
from everlearn.updates.plan import VersionPlan


def test_every_golden_cost_is_met(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "lr_path_switching" / "cost.json").read_text())
    for case in cases:
        steps, alpha = case["T"], case["alpha"]
        ptfs, cpt = ptfs_steps(steps), cpt_steps(steps)
        lazy = path_switching_steps(steps, alpha)
        eager = path_switching_steps(steps, alpha, lazy=False)
        assert (ptfs, cpt, lazy, eager) == (case["ptfs"], case["cpt"], case["ours_lazy"], case["ours_eager"])
        assert cpt / ptfs == pytest.approx(case["cpt_over_ptfs"], rel=1e-9)
        assert float(lazy / ptfs) == pytest.approx(case["lazy_over_ptfs"], rel=1e-9)
        assert float(eager / ptfs) == pytest.approx(case["eager_over_ptfs"], rel=1e-9)
        for is_lazy, expected in ((True, lazy), (False, eager)):
            plan = VersionPlan("path_switching", tuple(steps), fraction=Fraction(str(alpha)), lazy=is_lazy)
            assert sum(segment.steps for segment in plan.segments()) == expected
    assert len(cases) == 7


def test_four_versions_cost_58_percent_of_training_from_scratch() -> None:
    costs = planned(VersionPlan("path_switching", (500,) * 4), tokens_per_step=1024, flops_per_token=10)
    assert {cost.paradigm: cost.ratio_to_ptfs for cost in costs} == {"ptfs": 1.0, "cpt": 0.4, "path_switching": 0.58}
    ours = costs[2]
    assert (ours.steps, ours.tokens, ours.flops) == (2900, 2900 * 1024, 2900 * 10240)


@given(steps=st.lists(st.integers(1, 200), min_size=1, max_size=7), fraction=st.fractions(Fraction(1, 50), 1))
def test_path_switching_costs_no_more_than_a_rounding_beside_the_formula(steps, fraction) -> None:
    plan = VersionPlan("path_switching", tuple(steps), fraction=fraction)
    counted = sum(segment.steps for segment in plan.segments())
    assert abs(counted - path_switching_steps(steps, fraction)) <= len(steps)


def test_flops_count_the_parameters_and_the_causal_attention() -> None:
    assert flops_per_token(parameters=1000, layers=2, width=8, block_tokens=16) == 6000 + 6 * 2 * 8 * 16


def test_the_ledger_sets_executed_beside_planned() -> None:
    segments = VersionPlan("path_switching", (10,)).segments()
    rows = ledger(segments, {"m1a": {"steps": 4, "tokens": 32, "seconds": 1.5}}, tokens_per_step=8)
    assert [(row["id"], row["planned_steps"], row["executed_steps"]) for row in rows] == [("m1a", 4, 4), ("b1", 6, 0)]
    assert rows[0]["planned_tokens"] == rows[0]["executed_tokens"] == 32
