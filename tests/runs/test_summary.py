"""Matrix and metrics from the scores of every instance, on numbers that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.methods.base import Stage, one_stage_per_task
from everlearn.recipe import make_recipe
from everlearn.runs.measure import Measurement
from everlearn.runs.summary import summarise

ROW = (Instance("", "x", "y", "t"),)
STREAM = TaskStream((Task("a", ROW, ROW, metric="accuracy"), Task("b", ROW, ROW, metric="rouge_l")))
STAGES = one_stage_per_task(STREAM.tasks)
SPREAD = (0.0, 10.0, 35.0, 75.0)  # mean 30


def scored(metric: str, more: float) -> list[dict[str, Any]]:
    """Rows whose main score is `more` above `SPREAD`, beside one that must not be taken."""
    texts = {"prediction": "y", "gold": "y", "references": []}
    return [{"scores": {metric: value + more, "token_f1": -999.0}, **texts} for value in SPREAD]


def predictions(*rows: Mapping[str, float]) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """For the base and each stage, how far above `SPREAD` a task's scores are."""
    metrics = {task.name: task.metric for task in STREAM}
    return {at: {name: scored(metrics[name], more) for name, more in row.items()} for at, row in enumerate(rows)}


def summary(*rows: Mapping[str, float], confidence: float = 0.95) -> tuple[dict[str, Any], dict[str, Any]]:
    return summarise(STREAM, STAGES, predictions(*rows), samples=200, confidence=confidence, seed=7)


def width(interval: Sequence[float]) -> float:
    return interval[1] - interval[0]


def test_the_matrix_holds_the_means_of_the_main_metric_by_stage_and_task() -> None:
    matrix, _ = summary({"a": 0, "b": 1}, {"a": 20, "b": 6}, {"a": 5, "b": 15})
    assert {key: matrix[key] for key in ("tasks", "metrics", "stages", "trained_at")} == {
        "tasks": ["a", "b"],
        "metrics": {"a": "accuracy", "b": "rouge_l"},
        "stages": ["01-a", "02-b"],
        "trained_at": {"a": 1, "b": 2},
    }
    assert matrix["base"] == [30, 31]
    assert matrix["values"] == [[50, 36], [35, 45]]
    for values, intervals in zip(matrix["values"], matrix["intervals"], strict=True):
        for value, (low, high) in zip(values, intervals, strict=True):
            assert value - 35 < low < value < high < value + 35


def test_metrics_compare_each_task_with_its_own_stages_and_the_same_instances() -> None:
    _, metrics = summary({"a": 0, "b": 1}, {"a": 20, "b": 6}, {"a": 5, "b": 15})
    found = {name: metrics[name]["value"] for name in ("AR", "BWT", "FWT", "FWT_over_base", "forgetting")}
    assert found == pytest.approx({"AR": 40, "BWT": -15, "FWT": 36, "FWT_over_base": 5, "forgetting": 15})
    for name in ("BWT", "FWT_over_base"):  # every instance has changed by the same
        assert [metrics[name]["low"], metrics[name]["high"]] == pytest.approx([metrics[name]["value"]] * 2)
    assert metrics["AR"]["low"] < 40 < metrics["AR"]["high"]
    assert "higher is better" in metrics["definitions"]["BWT"]


def test_tasks_are_resampled_apart_at_the_level_asked_for() -> None:
    wide, metrics = summary({}, {"a": 0, "b": 0}, {"a": 0, "b": 0}, confidence=0.99)
    narrow, fewer = summary({}, {"a": 0, "b": 0}, {"a": 0, "b": 0}, confidence=0.6)
    assert wide["intervals"][0] == wide["intervals"][1]
    assert wide["intervals"][0][0] != wide["intervals"][0][1]
    assert width(narrow["intervals"][0][0]) < width(wide["intervals"][0][0])
    assert fewer["AR"]["high"] - fewer["AR"]["low"] < metrics["AR"]["high"] - metrics["AR"]["low"]


def test_an_unfinished_run_is_summed_up_as_far_as_it_went() -> None:
    matrix, metrics = summary({"a": 0, "b": 0}, {"a": 10, "b": 0})
    assert (matrix["stages"], matrix["trained_at"]) == (["01-a"], {"a": 1})
    assert metrics["AR"]["value"] == 40
    assert metrics["BWT"] == {"value": None, "low": None, "high": None}
    matrix, metrics = summary({"a": 0})
    assert (matrix["stages"], matrix["values"], matrix["base"]) == ([], [], [30, None])
    assert set(metrics) == {"definitions"}


def test_what_was_not_measured_is_a_hole_and_so_is_what_depends_on_it() -> None:
    matrix, metrics = summary({}, {"a": 0}, {"a": 0, "b": 0})
    assert matrix["base"] == [None, None]
    assert (matrix["values"][0], matrix["intervals"][0][1]) == ([30, None], None)
    assert metrics["FWT"]["value"] is metrics["FWT_over_base"]["value"] is None
    assert metrics["BWT"]["value"] == 0


def test_tasks_trained_together_have_one_row() -> None:
    stages = [Stage(1, STREAM.tasks, (), is_last=True)]
    rows = predictions({"a": 0, "b": 0}, {"a": 10, "b": 30})
    matrix, metrics = summarise(STREAM, stages, rows, samples=100, confidence=0.9, seed=1)
    assert (matrix["stages"], matrix["values"], matrix["trained_at"]) == (["01-all"], [[40, 60]], {"a": 1, "b": 1})
    assert metrics["AR"]["value"] == 50  # type: ignore[index, call-overload]
    assert metrics["FWT"]["value"] is None  # type: ignore[index, call-overload]  # no task came after another


def test_the_matrix_counts_answers_of_nothing_unless_nothing_is_right() -> None:
    found = predictions({"a": 0, "b": 1}, {"a": 20})
    found[1]["a"][0]["prediction"] = found[1]["a"][1]["prediction"] = ""
    found[1]["a"][1]["references"] = [""]
    matrix, _ = summarise(STREAM, STAGES, found, samples=200, confidence=0.95, seed=7)
    assert (matrix["answers"], matrix["base_empty"], matrix["empty"]) == ([1, 1], [0, 0], [[1, None]])


def test_the_line_of_a_stage_counts_its_empty_answers() -> None:
    measurement = Measurement(make_recipe({}), STREAM, STAGES, None, None, None, None, None)  # type: ignore[arg-type]
    measurement._rows = predictions({"a": 0, "b": 1}, {"a": 20, "b": 6})
    measurement._scores = {1: {"a": {"values": {"accuracy": 50}}, "b": {"values": {"rouge_l": 36}}}}
    assert measurement.line(STAGES[0]) == "after 01-a: a 50.0  b 36.0"
    measurement._rows[1]["b"][0]["prediction"] = ""
    assert measurement.line(STAGES[0]) == "after 01-a: a 50.0  b 36.0  (empty answers: b 1 of 4)"
