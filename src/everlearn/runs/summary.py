"""The accuracy matrix and the continual metrics of a run, from the scores of every instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from everlearn.data.instance import TaskStream
from everlearn.data.words import is_of_words
from everlearn.evaluation import bootstrap, continual
from everlearn.evaluation.entities import TestSet
from everlearn.evaluation.tasks import empty_answers
from everlearn.methods.base import Stage
from everlearn.seeds import derive

Predictions = Mapping[int, Mapping[str, Sequence[Mapping[str, Any]]]]


def summarise(
    stream: TaskStream,
    stages: Sequence[Stage],
    predictions: Predictions,
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> tuple[dict[str, object], dict[str, object]]:
    """Builds `matrix.json` and `metrics.json`.

    Args:
        stream: All tasks; they are the columns.
        stages: The run's stages; those with predictions are the rows.
        predictions: Stage index (0: the base) to task name to prediction rows.
        samples: Bootstrap resamples.
        confidence: Level of the intervals.
        seed: Of the resampling.
    """
    measured = [stage for stage in stages if stage.index in predictions]
    rows = [0, *(stage.index for stage in measured)]
    values: dict[str, dict[int, float]] = {task.name: {} for task in stream}
    resamples: dict[str, dict[int, bootstrap.Scores]] = {task.name: {} for task in stream}
    by_type: list[dict[str, float]] = []
    of_words = is_of_words(stream)
    if of_words:
        test_set = TestSet(stream, samples, seed)
        for stage in measured:
            tasks = [task for task in (*stage.seen, *stage.tasks) if task.name in predictions[stage.index]]
            answered = [predictions[stage.index][task.name] for task in tasks]
            value, drawn, types = test_set.scored(answered, tasks, stage.tasks[-1].metric)
            by_type.append(types)
            for task in tasks:
                values[task.name][stage.index], resamples[task.name][stage.index] = value, drawn
    for task in () if of_words else stream:
        known = [row for row in rows if task.name in predictions.get(row, {})]
        if not known:
            continue
        scores = np.array([[p["scores"][task.metric] for p in predictions[row][task.name]] for row in known])
        drawn = bootstrap.resampled_means(scores, samples, derive(seed, task.name))  # (samples, known rows)
        for at, row in enumerate(known):
            values[task.name][row] = float(scores[at].mean())
            resamples[task.name][row] = drawn[:, at]

    def cell(task: str, row: int) -> float | None:
        return values[task].get(row)

    def interval(task: str, row: int) -> list[float] | None:
        drawn = resamples[task].get(row)
        return None if drawn is None else list(bootstrap.percentile_interval(drawn, confidence))

    def empty(task: str, row: int) -> int | None:
        answers = predictions.get(row, {}).get(task)
        return None if answers is None else empty_answers(answers)

    trained_at = {task.name: stage.index for stage in measured for task in stage.tasks}
    matrix: dict[str, object] = {
        "tasks": stream.names,
        "metrics": {task.name: task.metric for task in stream},
        "stages": [stage.name for stage in measured],
        "base": [cell(name, 0) for name in stream.names],
        "values": [[cell(name, stage.index) for name in stream.names] for stage in measured],
        "intervals": [[interval(name, stage.index) for name in stream.names] for stage in measured],
        "answers": [len(task.evaluation) for task in stream],
        "base_empty": [empty(name, 0) for name in stream.names],
        "empty": [[empty(name, stage.index) for name in stream.names] for stage in measured],
        "trained_at": trained_at,
        **({"types": by_type} if by_type else {}),
    }
    measured_at = [stage.index for stage in measured]
    brings_classes = stream.scenario is not None
    return matrix, _metrics(values, resamples, measured_at, trained_at, samples, confidence, brings_classes)


def _metrics(
    values: Mapping[str, Mapping[int, float]],
    resamples: Mapping[str, Mapping[int, bootstrap.Scores]],
    rows: Sequence[int],
    trained_at: Mapping[str, int],
    samples: int,
    confidence: float,
    brings_classes: bool,
) -> dict[str, object]:
    metrics: dict[str, object] = {}
    tasks = list(trained_at)
    if rows:
        missing = np.full(samples, np.nan)
        point = np.array([[values[task].get(row, np.nan) for task in tasks] for row in (0, *rows)])
        drawn = np.array([[resamples[task].get(row, missing) for task in tasks] for row in (0, *rows)])
        drawn = np.moveaxis(drawn, -1, 0)  # (samples, base and stages, tasks)
        at = [rows.index(trained_at[task]) for task in tasks]
        spread = continual.continual_metrics(drawn[:, 1:], at, drawn[:, 0], brings_classes=brings_classes)
        found = continual.continual_metrics(point[1:], at, point[0], brings_classes=brings_classes)
        for name, value in found.items():
            if np.isnan(value):
                metrics[name] = {"value": None, "low": None, "high": None}
            else:
                low, high = bootstrap.percentile_interval(spread[name], confidence)
                metrics[name] = {"value": float(value), "low": low, "high": high}
    metrics["definitions"] = {
        name: text for name, text in continual.DEFINITIONS.items() if name in metrics or not rows
    }
    return metrics
