"""Confidence intervals: percentile bootstrap over instances, t intervals over seeds.

The instances of a task are resampled once for all stages of a run, so that the intervals of differences between
stages (backward transfer, forgetting) respect that the same instances were scored each time.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def resampled_means(scores: Scores, samples: int, seed: int) -> Scores:
    """Means over resampled instances.

    Args:
        scores: Shape (..., instances): the scores of the same instances, for example at several stages.
        samples: Number of resamples.
        seed: Of the resampling.

    Returns:
        Shape (samples, ...): for each resample, the mean along the last axis.
    """
    count = scores.shape[-1]
    assert count > 0, "a mean needs at least one instance"
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    return np.moveaxis(scores @ drawn.T / count, -1, 0)


def percentile_interval(values: Scores, confidence: float) -> tuple[float, float]:
    """The central interval that holds `confidence` of the resampled values."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def mean_interval(scores: Sequence[float], samples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Interval of the mean of one score an instance."""
    return percentile_interval(resampled_means(np.asarray(scores, dtype=float), samples, seed), confidence)


def seeds_interval(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """Student's t interval of a mean over seeds; None with fewer than two."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean - half, mean + half
