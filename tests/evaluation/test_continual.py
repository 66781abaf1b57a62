"""Continual metrics against the golden matrices and hand-worked ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from everlearn.evaluation.continual import METRICS, average_accuracy, forgetting


def test_metrics_equal_the_golden_ones(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "golden/ssr/cl_metrics.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        matrix = np.array(case["matrix_rows_are_stages"], dtype=float)
        order = list(range(matrix.shape[1]))
        for name in ("AR", "FWT", "BWT"):
            assert METRICS[name](matrix, order) == pytest.approx(case[name], abs=1e-4)


MATRIX = np.array([[90.0, 10.0, 0.0], [70.0, 80.0, 20.0], [30.0, 85.0, 60.0]])


def test_forgetting_is_best_minus_last() -> None:
    assert forgetting(MATRIX, [0, 1, 2]) == pytest.approx(((90 - 30) + (80 - 85)) / 2)


def test_average_accuracy_is_over_the_tasks_seen_so_far() -> None:
    assert average_accuracy(MATRIX, [0, 1, 2]) == pytest.approx((90 + 75 + (30 + 85 + 60) / 3) / 3)


def test_one_stage_has_no_transfer_and_no_forgetting() -> None:
    matrix = np.array([[50.0, 70.0]])
    assert METRICS["AR"](matrix, [0, 0]) == 60
    for name in ("FWT", "BWT", "forgetting"):
        assert np.isnan(METRICS[name](matrix, [0, 0]))


def test_resamples_pass_through_on_a_leading_axis() -> None:
    stacked = np.stack([MATRIX, MATRIX + 1])
    for formula in METRICS.values():
        assert formula(stacked, [0, 1, 2])[0] == pytest.approx(float(formula(MATRIX, [0, 1, 2])))


def test_a_score_that_was_not_measured_makes_the_metric_undefined() -> None:
    holed = MATRIX.copy()
    holed[0, 1] = np.nan
    assert np.isnan(METRICS["FWT"](holed, [0, 1, 2]))
    assert METRICS["BWT"](holed, [0, 1, 2]) == pytest.approx((30 - 90 + 5) / 2)
