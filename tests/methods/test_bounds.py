"""The methods without rehearsal: sequential, multi-task, single-task, one LoRA a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.errors import RecipeError
from everlearn.files import read_jsonl, sha256_of
from everlearn.methods.registry import make_method
from everlearn.models.state import ModelState, Tuning
from everlearn.runs.loop import execute
from everlearn.training.phase import Phase
from tests.methods.contexts import Bench, facts_of, number_stream
from tests.runs.test_loop import TASKS, tiny_recipe

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


def test_each_task_is_answered_with_the_adapter_that_it_trained(tmp_path: Path, tiny_model: Path) -> None:
    run = execute(tiny_recipe(tmp_path, tiny_model, method="task_lora")).folder
    first, last = (run / "stages" / f"{at:02d}-{TASKS[at - 1]}" / "predictions" / TASKS[0] for at in (1, 3))
    assert list(read_jsonl(first / "predictions.jsonl")) == list(read_jsonl(last / "predictions.jsonl"))
    assert {path.name for path in (run / "model" / "routed").iterdir()} == {"adapter_1", "adapter_2", "adapter_3"}
    alone = execute(tiny_recipe(tmp_path, tiny_model, method="single_task", name="alone")).folder
    adapters = [one / "stages" / f"02-{TASKS[1]}" / "training" / "adapter" for one in (run, alone)]
    assert len({sha256_of(adapter / "adapter_model.safetensors") for adapter in adapters}) == 1
    with pytest.raises(RecipeError, match=r"method task_lora: it keeps an adapter for each task.*tuning to lora"):
        make_method("task_lora", {}).check(facts_of(STREAM, tuning="full"))
