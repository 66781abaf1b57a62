"""Continual-learning metrics from an accuracy matrix.

A matrix is an array of scores in percent with stages as rows and tasks as columns (leading axes are allowed, such
as bootstrap resamples). `trained_at[j]` is the row after which task j had just been trained. A metric that is
undefined (backward transfer with one stage, a score that was not measured) is NaN.

Source: arXiv 2403.01244, spec section 10 (AR, FWT, BWT); arXiv 1801.10112, section 3 (forgetting).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

DEFINITIONS = {
    "AR": "Average over all tasks of the score after the last stage. Higher is better.",
    "FWT": "Forward transfer: average score on a task just before it is trained (from the second on), without "
    "subtracting a baseline. Higher is better.",
    "BWT": "Backward transfer: average over the tasks before the last stage of the final score minus the score just "
    "after training. Negative means forgetting; higher is better.",
    "forgetting": "Average over the tasks before the last stage of the best earlier score minus the final score. "
    "Lower is better.",
    "average_accuracy": "Average over the stages of the mean score on the tasks trained so far. Higher is better.",
    "last_accuracy": "Mean score after the last stage on all trained tasks. Higher is better.",
}


def average(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """AR: mean of the last row. Source: arXiv 2403.01244, equation for AR."""
    return np.mean(matrix[..., -1, :], axis=-1)


def forward_transfer(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """FWT: mean of a(i-1)_i over the tasks trained at the second row or later; NaN when there are none."""
    later = [j for j, stage in enumerate(trained_at) if stage > 0]
    if not later:
        return np.full(matrix.shape[:-2], np.nan)
    return np.mean(np.stack([matrix[..., trained_at[j] - 1, j] for j in later], axis=-1), axis=-1)


def backward_transfer(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """BWT: mean of a(T)_i - a(i)_i over the tasks trained before the last row; NaN when there are none."""
    earlier = _earlier(matrix, trained_at)
    if not earlier:
        return np.full(matrix.shape[:-2], np.nan)
    changes = [matrix[..., -1, j] - matrix[..., trained_at[j], j] for j in earlier]
    return np.mean(np.stack(changes, axis=-1), axis=-1)


def forgetting(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """Best score from training to the last stage but one, minus the final score, averaged. Lower is better."""
    earlier = _earlier(matrix, trained_at)
    if not earlier:
        return np.full(matrix.shape[:-2], np.nan)
    losses = [np.max(matrix[..., trained_at[j] : -1, j], axis=-1) - matrix[..., -1, j] for j in earlier]
    return np.mean(np.stack(losses, axis=-1), axis=-1)


def average_accuracy(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """Mean over stages of the mean score on the tasks trained so far."""
    rows = []
    for stage in range(matrix.shape[-2]):
        seen = [j for j, at in enumerate(trained_at) if at <= stage]
        rows.append(np.mean(matrix[..., stage, seen], axis=-1))
    return np.mean(np.stack(rows, axis=-1), axis=-1)


METRICS = {
    "AR": average,
    "FWT": forward_transfer,
    "BWT": backward_transfer,
    "forgetting": forgetting,
    "average_accuracy": average_accuracy,
    "last_accuracy": average,
}


def _earlier(matrix: Matrix, trained_at: Sequence[int]) -> list[int]:
    return [j for j, stage in enumerate(trained_at) if stage < matrix.shape[-2] - 1]
