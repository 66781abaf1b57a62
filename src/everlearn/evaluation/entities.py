"""Named entities that tags of words mark: found by `seqeval`, counted by sentence, scored over a whole test set.

An entity is right when its words and its type are. Of a test set, per type F1 = 2 TP / (2 TP + FP + FN):

    macro_f1   the mean over the types that there are among gold and predicted entities
    micro_f1   the same formula over the sums of all types

Both are those of seqeval's default mode (lenient: an `I-` that continues nothing begins an entity), in per cent. As
counts add up over sentences, a resample of sentences is scored from sums of their counts. Types that nothing has
trained yet do not count.

After a stage the test set is that of all tasks so far, each sentence once, and the score stands for each of these
tasks: a row of the matrix is constant (published). So AR is the last F1, the average over the stages their mean, and
forgetting is that of the score of a test set which grows.

Source: seqeval 1.2.2; protocol of arXiv 2312.07887 (its code) for words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn.data.instance import Task, TaskStream
from everlearn.data.words import METRICS, types_in
from everlearn.errors import MissingExtraError
from everlearn.evaluation import bootstrap

Counts = NDArray[np.float64]
"""(..., types, 3): right, wrongly found and missed entities."""
Row = Mapping[str, Any]


def check_seqeval() -> None:
    """Refuses to measure entities without the package that finds them.

    Raises:
        MissingExtraError: names what to install.
    """
    if find_spec("seqeval") is None:
        raise MissingExtraError(
            "entities of rows of words are measured by the package seqeval, which is not installed: run "
            "\"pip install 'everlearn[entities]'\"."
        )


def counted(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, list[int]]:
    """Of a sentence by entity type: how many entities are right, wrongly found, missed."""
    from seqeval.metrics.sequence_labeling import get_entities

    true, found = (set(get_entities(list(tags))) for tags in (gold, predicted))
    kinds = {kind for kind, *_ in true | found}
    return {
        kind: [sum(one[0] == kind for one in group) for group in (true & found, found - true, true - found)]
        for kind in sorted(kinds)
    }


def tagged_rows(task: Task, answers: Sequence[str], reason: str) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl`: tags as texts, entities by type, and the F1 of the sentence's own entities.

    Args:
        task: Whose evaluation instances were asked; the score of a sentence is over the task's types.
        answers: A tag for each word of each, with spaces between.
        reason: Why they end.
    """
    types, rows = types_in(task.classes), []
    for instance, prediction in zip(task.evaluation, answers, strict=True):
        found = counted(instance.output.split(" "), prediction.split(" "))
        own = np.array([found.get(kind, [0, 0, 0]) for kind in types], dtype=float)
        rows.append(
            {
                "id": instance.id,
                "instruction": instance.instruction,
                "input": instance.input,
                "gold": instance.output,
                "references": [],
                "prediction": prediction,
                "finish_reason": reason,
                "scores": {"entity_f1": float(f1(own, "micro_f1"))},
                "entities": found,
            }
        )
    return rows


def f1(counts: Counts, metric: str) -> np.ndarray:
    """Macro or micro F1 in per cent, (...), of counts (..., types, 3); 0 where there are no entities."""
    if metric == "micro_f1":
        counts = counts.sum(-2, keepdims=True)
    return np.nan_to_num(_mean_of_known(f1_by_type(counts)))


def f1_by_type(counts: Counts) -> np.ndarray:
    """F1 in per cent, (..., types); NaN of types without entities."""
    right, wrong, missed = np.moveaxis(counts, -1, 0)
    whole = 2 * right + wrong + missed
    return np.divide(200 * right, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    mean: np.ndarray = np.where(known, values, 0).sum(-1) / np.maximum(known.sum(-1), 1)
    return mean


def score_task(rows: Sequence[Row], task: Task, *, samples: int, confidence: float, seed: int) -> dict[str, object]:
    """Scores of a task's own types on its own test rows, as `score_rows` gives those of answers in words."""
    types = types_in(task.classes)
    counts = np.array([[row["entities"].get(kind, [0, 0, 0]) for kind in types] for row in rows], dtype=float)
    drawn = bootstrap.resampled_means(np.moveaxis(counts, 0, -1), samples, seed)
    return {
        "task": task.name,
        "metric": task.metric,
        "rows": len(rows),
        "empty": 0,
        "values": {metric: float(f1(counts.sum(0), metric)) for metric in METRICS},
        "types": dict(zip(types, f1_by_type(counts.sum(0)).tolist(), strict=True)),
        "interval": list(bootstrap.percentile_interval(f1(drawn, task.metric), confidence)),
    }


class TestSet:
    """The test rows of all tasks of a stream, each sentence once, and what was answered to them.

    Args:
        stream: Of rows of words.
        samples: Bootstrap resamples.
        seed: Of the resampling: the same sentences are drawn whatever is scored.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, stream: TaskStream, samples: int, seed: int) -> None:
        self._samples, self._seed = samples, seed
        rows = dict.fromkeys((row.id, row.input, row.output) for task in stream for row in task.evaluation)
        self._place = {row: at for at, row in enumerate(rows)}

    def scored(
        self, answered: Sequence[Sequence[Row]], tasks: Sequence[Task], metric: str
    ) -> tuple[float, np.ndarray, dict[str, float]]:
        """The score of a stage.

        Args:
            answered: Rows of predictions of each task that counts.
            tasks: These tasks, whose types count.
            metric: Of `METRICS`.

        Returns:
            The score, that of each resample (samples,), and the F1 of each type.
        """
        types = [kind for task in tasks for kind in types_in(task.classes)]
        counts = np.zeros((len(types), 3, len(self._place)))
        for row in (row for rows in answered for row in rows):
            at = self._place[str(row["id"]), str(row["input"]), str(row["gold"])]
            counts[:, :, at] = [row["entities"].get(kind, [0, 0, 0]) for kind in types]
        whole = counts.sum(-1)
        drawn = bootstrap.resampled_means(counts, self._samples, self._seed)
        return float(f1(whole, metric)), f1(drawn, metric), dict(zip(types, f1_by_type(whole).tolist(), strict=True))
