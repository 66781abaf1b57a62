"""Herding against the published buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.data.herding import herded
from everlearn.data.instance import Instance, Task
from everlearn.data.reservoir import Memory

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "seq" / "herding.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"fixed {case['fix_budget_each_class']}")
def test_every_quota_is_a_beginning_of_the_published_lists(case: dict[str, Any]) -> None:
    seen = 0
    lists: dict[int, list[int]] = {}
    for number, (task, step) in enumerate(zip(case["tasks"], case["steps"], strict=True)):
        seen += case["classes_per_task"][number]
        quota = case["buffer_size"] // (sum(case["classes_per_task"]) if case["fix_budget_each_class"] else seen)
        for label in sorted({row["label"] for row in task}):
            rows = [row for row in task if row["label"] == label]
            taken = herded(np.array([row["features"] for row in rows]), len(rows))
            lists[label] = [rows[at]["id"] for at in taken]
        assert [lists[label][:quota] for label in sorted(lists)] == step["stored_ids_per_class"][:seen]


def test_memory_shares_its_rows_among_the_classes_so_far_as_published() -> None:
    (case,) = (case for case in GOLDEN if not case["fix_budget_each_class"])
    memory, tasks, ids = Memory(), [], {}
    for number, (rows, step) in enumerate(zip(case["tasks"], case["steps"], strict=True), 1):
        name = f"t{number}"
        train = tuple(Instance("", str(row["id"]), str(row["label"]), name) for row in rows)
        ids |= {(name, place): row["id"] for place, row in enumerate(rows)}
        task = Task(name, train, (), labels=tuple(sorted({row.output for row in train})))
        memory.herd(tasks, [task], [np.array([row["features"] for row in rows])], case["buffer_size"])
        tasks.append(task)
        of_class: dict[str, list[int]] = {}
        for place in memory.held:
            of_class.setdefault(tasks[int(place[0][1:]) - 1].train[place[1]].output, []).append(ids[place])
        expected = {str(label): found for label, found in enumerate(step["stored_ids_per_class"]) if found}
        assert of_class == expected
        stored, memory = memory.to_json(), Memory()
        memory.load(json.loads(json.dumps(stored)))
    assert memory.offered == sum(len(rows) for rows in case["tasks"])


def test_a_task_without_labels_counts_as_one_class() -> None:
    memory, rows = Memory(), tuple(Instance("", str(at), f"answer {at}", "free") for at in range(6))
    memory.herd([], [Task("free", rows, ())], [np.random.default_rng(0).normal(size=(6, 3))], 4)
    assert len(memory.held) == 4


def test_no_row_is_taken_twice_and_rows_without_length_are_borne() -> None:
    features = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1], [1.0, 0.0]])
    assert sorted(herded(features, 9)) == [0, 1, 2, 3]
