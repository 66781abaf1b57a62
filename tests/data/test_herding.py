"""Herding against the published buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.data.herding import herded

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


def test_no_row_is_taken_twice_and_rows_without_length_are_borne() -> None:
    features = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1], [1.0, 0.0]])
    assert sorted(herded(features, 9)) == [0, 1, 2, 3]
