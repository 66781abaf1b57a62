"""Confidence intervals: percentile bootstrap over instances, t intervals over seeds.

The instances of a task are resampled once for all stages of a run, so that the intervals of differences between
stages (backward transfer, forgetting) respect that the same instances were scored each time. Known limit: when all
scores are equal (every answer right), every resample is the same and the interval has no width, however few the
instances.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

DRAWS_AT_ONCE = 1 << 22
"""Most instances drawn in one piece: 32 MiB of indexes."""


def resampled_means(scores: Scores, samples: int, seed: int) -> Scores:
    """Means over resampled instances.

    Args:
        scores: Shape (..., instances): the scores of the same instances, for example at several stages. Each
            resample takes the same instances from all of them.
        samples: Number of resamples.
        seed: Of the resampling; the same seed and number of instances give the same resamples.

    Returns:
        Shape (samples, ...): for each resample, the mean along the last axis.
    """
    count = scores.shape[-1]
    assert count > 0, "a mean needs at least one instance"
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // count)
    pieces = []
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        pieces.append(np.moveaxis(scores @ times.T / count, -1, 0))
    return np.concatenate(pieces)


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
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy.stats takes a second to import

    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    half = quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean - half, mean + half
