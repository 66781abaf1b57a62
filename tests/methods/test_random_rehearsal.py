"""Rehearsal of real rows: the published samples, and drawn ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from everlearn.data.instance import Instance, Task
from everlearn.errors import RecipeError
from everlearn.methods.base import Stage
from everlearn.methods.random_rehearsal import drawn_sample
from everlearn.methods.registry import make_method
from tests.methods.contexts import Bench, number_stream


def real_task(shared_dir: Path, name: str) -> Task:
    path = shared_dir / "data" / "superni" / f"{name}.train.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    train = tuple(Instance("", row["input"], row["output"], name, id=row["id"]) for row in rows)
    outputs = sorted({row.output for row in train})
    return Task(name, train, (), labels=tuple(outputs) if len(outputs) == 2 else ())


@pytest.mark.parametrize("name", ["qa", "sa", "pos", "trans"])
@pytest.mark.parametrize(("ratio", "sample"), [(0.1, "smp01"), (0.05, "smp005"), (0.01, "smp001")])
def test_the_published_samples_are_rehearsed(
    shared_dir: Path, tmp_path: Path, tiny_model: Path, name: str, ratio: float, sample: str
) -> None:
    samples = json.loads((shared_dir / "data" / "superni" / "rehearsal_samples.json").read_text(encoding="utf-8"))
    task = real_task(shared_dir, name)
    stage = Stage(2, (task,), (task,), is_last=True)
    method = make_method("random_rehearsal", {"ratio": ratio})
    rows = method.rehearsal(Bench(tmp_path, tiny_model).context(stage)).rows
    assert [row.id for row in rows] == samples[name][sample]


def test_earlier_tasks_come_in_order_of_arrival(tmp_path: Path, tiny_model: Path) -> None:
    stream = number_stream()
    method = make_method("random_rehearsal", {"ratio": 0.25})
    stages = method.stages(stream)
    bench = Bench(tmp_path, tiny_model)
    assert method.rehearsal(bench.context(stages[0])).rows == []
    rows = method.rehearsal(bench.context(stages[2])).rows
    assert [row.task for row in rows] == ["first"] * 10 + ["second"] * 10
    assert all(row.origin == "real" for row in rows)


def test_drawn_samples_depend_on_seed_and_task_alone(tmp_path: Path, tiny_model: Path) -> None:
    first, second = number_stream().tasks[:2]
    sample = drawn_sample(first, 0.25, 1)
    assert len({row.id for row in sample}) == 10
    assert sample == drawn_sample(first, 0.25, 1)
    assert sample != drawn_sample(first, 0.25, 2)
    assert [row.id for row in sample] != [row.id for row in drawn_sample(second, 0.25, 1)]
    method = make_method("random_rehearsal", {"ratio": 0.25, "draw": "random"})
    stage = method.stages(number_stream())[1]
    assert method.rehearsal(Bench(tmp_path, tiny_model).context(stage, seed=1)).rows == sample


@pytest.mark.parametrize(("ratio", "count"), [(0.09, 4), (0.0001, 1), (1.0, 40)])
def test_a_drawn_sample_has_the_nearest_number_of_rows_in_the_order_of_the_data(ratio: float, count: int) -> None:
    places = [int(row.id.removeprefix("n")) for row in drawn_sample(number_stream().tasks[0], ratio, 1)]
    assert len(places) == count
    assert places == sorted(set(places))


@pytest.mark.parametrize("ratio", [0, 1.5, -0.1])
def test_ratios_outside_zero_to_one_are_refused(ratio: float) -> None:
    with pytest.raises(RecipeError, match="method random_rehearsal: ratio"):
        make_method("random_rehearsal", {"ratio": ratio})
