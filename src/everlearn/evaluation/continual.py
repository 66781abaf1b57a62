"""Continual-learning metrics from an accuracy matrix.

A matrix is an array a of scores in percent with stages as rows and trained tasks as columns; leading axes, such as
bootstrap resamples, are carried through. `trained_at[j]` is the row after which task j had just been trained; for a
stream in order that is j. T is the number of rows. A metric that is undefined (backward transfer with one stage) or
that needs a score which was not measured (NaN) is NaN; nothing is averaged around a hole.

Choices among the formulas that go by one name: FWT subtracts no baseline, as in SSR (the form of Lopez-Paz &
Ranzato stands beside it as FWT_over_base when the base model's scores are given). Forgetting is best minus last; its
first-minus-last form is -BWT. The best is looked for from the task's own stage on, so that a lucky zero-shot score
is no knowledge to lose.

Studies of class- and task-incremental learning (arXiv 2312.07887, read from its code) call AR the average accuracy
A_T and the average over the stages the average incremental accuracy; BWT is the same. Their forward transfer subtracts
the scores of an untrained model (FWT_over_base, where that is the base). Their forgetting counts the last stage among
those of which the best is taken, so that a task that has risen does not make up for one that has fallen.

Source: arXiv 2403.01244, section 4.1 (AR, FWT, BWT); arXiv 1706.08840, section 3 (FWT over a baseline, BWT);
arXiv 1801.10112, section 3 (forgetting); arXiv 1611.07725, section 4 (average over the stages); arXiv 2508.04676
(F1 of tasks and general ability, second-hand: two published rows agree with it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

DEFINITIONS = {
    "AR": "AR = mean over j of a(T, j): score after the last stage, averaged over the tasks. Higher is better.",
    "FWT": "FWT = mean over tasks j trained at a stage s > 1 of a(s - 1, j): score on a task just before it is "
    "trained, without subtracting a baseline. Higher is better.",
    "BWT": "BWT = mean over tasks j trained at a stage s < T of a(T, j) - a(s, j): change since the task was "
    "trained. Negative means forgetting; higher is better.",
    "forgetting": "Forgetting = mean over tasks j trained at a stage s < T of the maximum of a(i, j) over s <= i < T, "
    "minus a(T, j): best score since the task was trained minus the last. Lower is better.",
    "forgetting_highest": "Forgetting (never below 0) = mean over tasks j trained at a stage s < T of the maximum of "
    "a(i, j) over s <= i <= T, minus a(T, j), as class-incremental studies have it. Lower is better.",
    "average_accuracy": "Average = mean over the stages i of the mean of a(i, j) over the tasks j trained by then, "
    "which class-incremental studies call average incremental accuracy. Higher is better.",
    "last_accuracy": "Last = mean of a(T, j) over the tasks j trained by the last stage: AR under the name that "
    "class-incremental learning uses (A_T). Higher is better.",
    "FWT_over_base": "FWT_over_base = mean over tasks j trained at a stage s > 1 of a(s - 1, j) - a(0, j), where row "
    "0 is the base model: what the earlier tasks have added. Higher is better.",
}


F1_DEFINITION = (
    "F1_avg = 2 G AR / (G + AR): harmonic mean of AR and of the general ability after the last stage, where G is the "
    "share of held-out micro-tasks answered exactly (not MMLU, with which it was published). Higher is better."
)


def f1_average(general: float, tasks: float) -> float:
    """The harmonic mean of general ability and of the average over the tasks, both in percent; 0 where either is."""
    return 2 * general * tasks / (general + tasks) if general + tasks else 0.0


def average(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """AR: mean of the last row. Source: arXiv 2403.01244, section 4.1."""
    return np.mean(matrix[..., -1, :], axis=-1)


def forward_transfer(
    matrix: Matrix, trained_at: Sequence[int], base: Sequence[float] | Matrix | None = None
) -> Matrix:
    """FWT: mean score on each task just before its training, over the tasks trained at the second row or later.

    Args:
        matrix: Shape (..., stages, tasks).
        trained_at: Row of each task's training.
        base: Scores of the base model, shape (..., tasks), to subtract; None, as in SSR, subtracts nothing.

    Source: arXiv 2403.01244, section 4.1; with `base`, arXiv 1706.08840, section 3.
    """
    before = [matrix[..., stage - 1, task] for task, stage in enumerate(trained_at) if stage > 0]
    if base is not None:
        start = np.asarray(base, dtype=float)
        later = [task for task, stage in enumerate(trained_at) if stage > 0]
        before = [score - start[..., task] for score, task in zip(before, later, strict=True)]
    return _mean(before, matrix)


def backward_transfer(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """BWT: mean of a(T)_i - a(i)_i over the tasks trained before the last row.

    Source: arXiv 2403.01244, section 4.1.
    """
    return _mean(
        [matrix[..., -1, task] - matrix[..., stage, task] for task, stage in _old(matrix, trained_at)], matrix
    )


def forgetting(
    matrix: Matrix, trained_at: Sequence[int], against: Literal["best", "first", "highest"] = "best"
) -> Matrix:
    """Earlier score minus the last one, averaged over the tasks trained before the last row. Lower is better.

    Args:
        matrix: Shape (..., stages, tasks).
        trained_at: Row of each task's training.
        against: The earlier score: `best` from the task's own row to the last but one (arXiv 1801.10112, section 3),
            the `first`, right after training (-BWT; called forgetting by some libraries), or the `highest`, from the
            task's own row to the last, so that nothing is below zero (code of arXiv 2312.07887, which leaves earlier
            rows unmeasured).
    """
    ends = {"best": lambda stage: -1, "first": lambda stage: stage + 1, "highest": lambda stage: None}
    losses = []
    for task, stage in _old(matrix, trained_at):
        earlier = matrix[..., stage : ends[against](stage), task]
        losses.append(np.max(earlier, axis=-1) - matrix[..., -1, task])
    return _mean(losses, matrix)


def average_accuracy(matrix: Matrix, trained_at: Sequence[int]) -> Matrix:
    """Mean over the rows of the mean score on the tasks trained so far. Source: arXiv 1611.07725, section 4."""
    rows = []
    for row in range(matrix.shape[-2]):
        seen = [matrix[..., row, task] for task, stage in enumerate(trained_at) if stage <= row]
        rows.append(_mean(seen, matrix))
    return _mean(rows, matrix)


METRICS: dict[str, Callable[[Matrix, Sequence[int]], Matrix]] = {
    "AR": average,
    "FWT": forward_transfer,
    "BWT": backward_transfer,
    "forgetting": forgetting,
    "average_accuracy": average_accuracy,
    "last_accuracy": average,
}


def continual_metrics(
    matrix: Matrix,
    trained_at: Sequence[int],
    base: Sequence[float] | Matrix | None = None,
    *,
    brings_classes: bool = False,
) -> dict[str, Matrix]:
    """All metrics of a matrix by name (`DEFINITIONS` says what they are).

    Args:
        matrix: Shape (..., stages, tasks).
        trained_at: Row of each task's training.
        base: Scores of the base model, shape (..., tasks); adds FWT_over_base.
        brings_classes: Whether the tasks are those of a class- or task-incremental stream; adds forgetting_highest.
    """
    found = {name: formula(matrix, trained_at) for name, formula in METRICS.items()}
    if brings_classes:
        found["forgetting_highest"] = forgetting(matrix, trained_at, "highest")
    if base is not None:
        found["FWT_over_base"] = forward_transfer(matrix, trained_at, base)
    return found


def _old(matrix: Matrix, trained_at: Sequence[int]) -> list[tuple[int, int]]:
    """Task and row of its training, for the tasks trained before the last row."""
    return [(task, stage) for task, stage in enumerate(trained_at) if stage < matrix.shape[-2] - 1]


def _mean(values: Sequence[Matrix], matrix: Matrix) -> Matrix:
    if not values:
        return np.full(matrix.shape[:-2], np.nan)
    return np.mean(np.stack(values, axis=-1), axis=-1)
