"""Intervals: hold the mean, respect pairing, repeat with the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.evaluation import bootstrap
from everlearn.evaluation.bootstrap import mean_interval, percentile_interval, resampled_means, seeds_interval
from everlearn.evaluation.continual import backward_transfer


def test_the_interval_holds_the_mean_and_narrows_with_more_instances() -> None:
    few, many = [0.0, 100.0] * 10, [0.0, 100.0] * 1000
    widths = []
    for scores in (few, many):
        low, high = mean_interval(scores, 1000, 0.95, 0)
        assert low < 50 < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(4 * 50 / np.sqrt(2000), rel=0.15)
    assert widths[0] > 5 * widths[1]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30), st.integers(0, 1000))
def test_an_interval_holds_the_mean_and_lies_within_the_scores(scores: list[float], seed: int) -> None:
    low, high = mean_interval(scores, 200, 0.95, seed)
    assert min(scores) - 1e-9 <= low <= np.mean(scores) + 1e-9
    assert np.mean(scores) - 1e-9 <= high <= max(scores) + 1e-9


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(1).uniform(0, 100, 40).tolist()
    assert mean_interval(scores, 100, 0.9, 3) == mean_interval(scores, 100, 0.9, 3)
    assert mean_interval(scores, 100, 0.9, 3) != mean_interval(scores, 100, 0.9, 4)


def test_nothing_is_drawn_from_the_global_generator() -> None:
    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    mean_interval([0.0, 1.0, 2.0], 100, 0.9, 3)
    assert np.random.rand() == expected


def test_stages_are_resampled_together() -> None:
    scores = np.random.default_rng(0).uniform(0, 100, 50)
    means = resampled_means(np.stack([scores, scores - 5]), 200, 1)
    assert means.shape == (200, 2)
    assert means[:, 0] - means[:, 1] == pytest.approx(np.full(200, 5.0))


def test_pairing_narrows_the_interval_of_backward_transfer() -> None:
    before = np.random.default_rng(0).choice([0.0, 100.0], 100)
    after = before.copy()
    after[:5] = 0.0
    paired = resampled_means(np.stack([before, after]), 500, 1)  # (samples, stages)
    apart = np.stack([resampled_means(before, 500, 1), resampled_means(after, 500, 2)], axis=-1)
    widths = []
    for means in (paired, apart):
        matrices = np.stack([means, np.zeros_like(means)], axis=-1)  # (samples, stages, tasks)
        low, high = percentile_interval(backward_transfer(matrices, [0, 1]), 0.95)
        widths.append(high - low)
    assert widths[0] < widths[1] / 2


def test_pieces_and_one_draw_have_the_same_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).uniform(0, 100, 50)
    whole = resampled_means(scores, 1000, 5)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 500)
    pieces = resampled_means(scores, 1000, 5)
    assert pieces.shape == whole.shape == (1000,)
    assert np.std(pieces) == pytest.approx(np.std(whole), rel=0.1)
    assert len(set(pieces.tolist())) > 900


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = mean_interval(rng.normal(10, 5, 60).tolist(), 400, 0.9, trial)
        hits += low <= 10 <= high
    assert 165 <= hits <= 195


def test_an_interval_over_seeds_needs_two_of_them() -> None:
    assert seeds_interval([3.0], 0.95) is None
    # By hand: t(0.975, 2) = 4.30265, standard error 1 / sqrt(3).
    assert seeds_interval([1.0, 2.0, 3.0], 0.95) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    # t(0.975, 1) = 12.7062, standard error 1.
    assert seeds_interval([1.0, 3.0], 0.95) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
