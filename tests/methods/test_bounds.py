"""The methods without rehearsal: sequential, multi-task, single-task."""

from __future__ import annotations

from pathlib import Path

from everlearn.methods.registry import make_method
from everlearn.models.state import ModelState, Tuning
from everlearn.training.phase import Phase
from tests.methods.contexts import Bench, number_stream

STREAM = number_stream()


def test_sequential_tuning_trains_on_each_task_alone(tmp_path: Path, tiny_model: Path) -> None:
    method = make_method("sequential", {})
    stages = method.stages(STREAM)
    bench = Bench(tmp_path, tiny_model)
    assert [stage.rows for stage in stages] == [task.train for task in STREAM]
    for stage in stages:
        assert method.rehearsal(bench.context(stage)).rows == []
        assert method.phases(bench.context(stage)) == [Phase()]
        assert not method.influences(bench.context(stage))
    assert stages[2].seen == STREAM.tasks[:2]


def test_multitask_training_is_one_stage_with_all_rows_in_task_order() -> None:
    (stage,) = make_method("multitask", {}).stages(STREAM)
    assert stage.rows == tuple(row for task in STREAM for row in task.train)
    assert (stage.index, stage.seen, stage.is_last, stage.name) == (1, (), True, "01-all")


def test_single_tasks_start_from_the_base_each_time(tmp_path: Path, tiny_model: Path) -> None:
    method = make_method("single_task", {})
    stages = method.stages(STREAM)
    bench = Bench(tmp_path, tiny_model)
    for stage in stages:
        (phase,) = method.phases(bench.context(stage))
        assert phase.tuning == Tuning(ModelState("base"))
        assert phase.describe(phase.tuning) is None  # trained as ever, so its first stage is everybody's
    assert [stage.rows for stage in stages] == [task.train for task in STREAM]
