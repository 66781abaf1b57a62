"""Intervals: hold the mean, respect pairing, repeat with the seed."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.evaluation.bootstrap import mean_interval, resampled_means, seeds_interval


def test_the_interval_holds_the_mean_and_narrows_with_more_instances() -> None:
    few, many = [0.0, 100.0] * 10, [0.0, 100.0] * 1000
    widths = []
    for scores in (few, many):
        low, high = mean_interval(scores, 1000, 0.95, 0)
        assert low < 50 < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(4 * 50 / np.sqrt(2000), rel=0.15)
    assert widths[0] > 5 * widths[1]


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(1).uniform(0, 100, 40).tolist()
    assert mean_interval(scores, 100, 0.9, 3) == mean_interval(scores, 100, 0.9, 3)
    assert mean_interval(scores, 100, 0.9, 3) != mean_interval(scores, 100, 0.9, 4)


def test_stages_are_resampled_together() -> None:
    scores = np.random.default_rng(0).uniform(0, 100, 50)
    means = resampled_means(np.stack([scores, scores - 5]), 200, 1)
    assert means.shape == (200, 2)
    assert means[:, 0] - means[:, 1] == pytest.approx(np.full(200, 5.0))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = mean_interval(rng.normal(10, 5, 60).tolist(), 400, 0.9, trial)
        hits += low <= 10 <= high
    assert 165 <= hits <= 195


def test_an_interval_over_seeds_needs_two_of_them() -> None:
    assert seeds_interval([3.0], 0.95) is None
    low, high = seeds_interval([1.0, 2.0, 3.0], 0.95)  # type: ignore[misc]
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
