"""Continual metrics against the golden matrices and hand-worked ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.evaluation.continual import (
    DEFINITIONS,
    METRICS,
    average_accuracy,
    backward_transfer,
    continual_metrics,
    f1_average,
    forgetting,
    forward_transfer,
)

GERE = json.loads((Path(__file__).parents[1] / "golden" / "gere" / "metrics.json").read_text())["cases"]
MATRIX = np.array([[90.0, 10.0, 0.0], [70.0, 80.0, 20.0], [30.0, 85.0, 60.0]])
IN_ORDER = [0, 1, 2]


def test_metrics_equal_the_golden_ones(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "ssr/cl_metrics.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        matrix = np.array(case["matrix_rows_are_stages"], dtype=float)
        found = continual_metrics(matrix, list(range(matrix.shape[1])))
        for name in ("AR", "FWT", "BWT"):
            assert found[name] == pytest.approx(case[name], abs=1e-9)


def test_all_metrics_by_hand() -> None:
    found = continual_metrics(MATRIX, IN_ORDER, base=[40.0, 4.0, 1.0])
    assert found == pytest.approx(
        {
            "AR": 175 / 3,
            "FWT": (10 + 20) / 2,
            "BWT": ((30 - 90) + (85 - 80)) / 2,
            "forgetting": ((90 - 30) + (80 - 85)) / 2,
            "average_accuracy": (90 + 75 + 175 / 3) / 3,
            "last_accuracy": 175 / 3,
            "FWT_over_base": ((10 - 4) + (20 - 1)) / 2,
        }
    )


def test_every_metric_is_defined_in_words() -> None:
    assert set(continual_metrics(MATRIX, IN_ORDER, base=[0.0, 0.0, 0.0], brings_classes=True)) == set(DEFINITIONS)


def test_columns_may_stand_in_any_order() -> None:
    shuffled = continual_metrics(MATRIX[:, [2, 0, 1]], [2, 0, 1])
    assert shuffled == pytest.approx(continual_metrics(MATRIX, IN_ORDER))


def test_forgetting_is_from_the_best_score_since_training() -> None:
    matrix = np.array([[50.0, 99.0], [70.0, 80.0], [60.0, 75.0]])
    assert forgetting(matrix, [0, 1]) == pytest.approx(((70 - 60) + (80 - 75)) / 2)


def test_first_minus_last_forgetting_is_backward_transfer_turned_round() -> None:
    assert forgetting(MATRIX, IN_ORDER, "first") == -backward_transfer(MATRIX, IN_ORDER)


def test_one_stage_has_an_average_but_no_transfer_and_no_forgetting() -> None:
    found = continual_metrics(np.array([[50.0, 70.0]]), [0, 0])
    assert found["AR"] == found["last_accuracy"] == 60
    for name in ("FWT", "BWT", "forgetting"):
        assert np.isnan(found[name])


def test_resamples_pass_through_on_a_leading_axis() -> None:
    stacked = np.stack([MATRIX, MATRIX * 0.5])
    for formula in METRICS.values():
        each = [float(formula(one, IN_ORDER)) for one in stacked]
        assert formula(stacked, IN_ORDER) == pytest.approx(each)
    over_base = forward_transfer(stacked, IN_ORDER, np.array([[0.0, 1.0, 1.0], [0.0, 2.0, 2.0]]))
    assert over_base == pytest.approx([15 - 1, 7.5 - 2])


def test_a_score_that_was_not_measured_makes_the_metric_undefined() -> None:
    holed = MATRIX.copy()
    holed[0, 1] = np.nan
    assert np.isnan(forward_transfer(holed, IN_ORDER))
    assert backward_transfer(holed, IN_ORDER) == pytest.approx((30 - 90 + 5) / 2)
    assert average_accuracy(holed, IN_ORDER) == pytest.approx(average_accuracy(MATRIX, IN_ORDER))


def test_the_matrix_is_left_as_it_was() -> None:
    before = MATRIX.copy()
    continual_metrics(MATRIX, IN_ORDER, base=[1.0, 2.0, 3.0])
    assert np.array_equal(MATRIX, before)


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_forgetting_from_the_best_is_never_less_than_from_the_first(tasks: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).uniform(0, 100, (tasks, tasks))
    order = list(range(tasks))
    assert forgetting(matrix, order) >= forgetting(matrix, order, "first") - 1e-9


@pytest.mark.parametrize("case", GERE, ids=lambda case: case["id"])
def test_tasks_and_general_ability_in_one_number(case: dict) -> None:
    tasks = case.get("task_accuracies")
    found = float(np.mean(tasks)) if tasks else case["ap"]
    assert found == pytest.approx(case.get("expected_ap", found), abs=1e-6)
    assert f1_average(case["mmlu"], found) == pytest.approx(case["expected_f1_avg"], abs=1e-6)
    assert f1_average(0.0, 0.0) == 0.0


def test_metrics_of_class_incremental_studies_are_the_golden_ones(golden_dir: Path) -> None:
    for case in json.loads((golden_dir / "seq/metrics.json").read_text(encoding="utf-8")):
        matrix = np.array(case["R"])
        count = len(matrix)
        is_full = (matrix >= 0).all()
        trained_at = [0] * count if is_full else list(range(count))  # of a full one the best is looked for in all rows
        matrix[matrix < 0] = np.nan
        assert average_accuracy(matrix, range(count)) == pytest.approx(case["average_inc_acc"])
        found = continual_metrics(matrix, range(count), brings_classes=True)
        assert found["last_accuracy"] == pytest.approx(case["average_acc"])
        if count == 1:  # published as -1
            assert np.isnan([found["forgetting_highest"], found["BWT"]]).all()
            continue
        columns = matrix[:, :-1]
        assert forgetting(columns, trained_at[:-1], "highest") == pytest.approx(case["forgetting"])
        assert found["BWT"] == pytest.approx(case["backward_transfer"])
        if "random_result" in case:
            assert forward_transfer(matrix, range(count), case["random_result"]) == pytest.approx(
                case["forward_transfer"]
            )


def test_the_highest_score_may_be_the_last() -> None:
    assert forgetting(MATRIX, IN_ORDER, "highest") == pytest.approx(((90 - 30) + 0) / 2)
    assert "forgetting_highest" not in continual_metrics(MATRIX, IN_ORDER)
