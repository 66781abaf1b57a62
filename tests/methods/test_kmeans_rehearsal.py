"""Rehearsal of real rows near cluster centres."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import everlearn.models.embeddings as embeddings
from everlearn.errors import MissingExtraError, RecipeError
from everlearn.methods.registry import make_method
from tests.methods.contexts import Bench, number_stream

STREAM = number_stream()


def test_rows_are_those_nearest_to_the_centres_of_their_clusters(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    angles = [0.0 if at < 20 else 1.5 if at < 30 else 3.0 for at in range(40)]
    angles = [angle + 0.01 * (at % 10) for at, angle in enumerate(angles)]
    points = {f"number {1000 + 37 * at}": (np.cos(angle), np.sin(angle)) for at, angle in enumerate(angles)}

    def embed(loaded: object, texts: Sequence[str], **_: object) -> np.ndarray:
        return np.array([points[text] for text in texts], dtype=np.float32)

    monkeypatch.setattr(embeddings, "embed_texts", embed)
    method = make_method("kmeans_rehearsal", {"ratio": 0.2, "clusters": 3})
    rows = method.rehearsal(Bench(tmp_path, tiny_model).context(method.stages(STREAM)[1]))
    places = [int(row.id.removeprefix("n")) for row in rows]
    assert Counter("low" if at < 20 else "middle" if at < 30 else "high" for at in places) == {
        "low": 4,
        "middle": 2,
        "high": 2,
    }
    assert {at % 10 for at in places} <= {3, 4, 5, 6}  # the middle of each cluster's arc


def test_selection_is_made_once_and_kept_with_the_stage_of_its_task(tmp_path: Path, tiny_model: Path) -> None:
    method = make_method("kmeans_rehearsal", {"ratio": 0.25, "clusters": 4})
    bench = Bench(tmp_path, tiny_model)
    stages = method.stages(STREAM)
    second = list(method.rehearsal(bench.context(stages[1])))
    third = list(method.rehearsal(bench.context(stages[2])))
    assert third[: len(second)] == second
    assert [row.task for row in third] == ["first"] * len(second) + ["second"] * (len(third) - len(second))
    assert bench.steps[1].made == ["rehearsal/kmeans"]
    assert bench.steps[2].made == ["rehearsal/kmeans"]
    again = make_method("kmeans_rehearsal", {"ratio": 0.25, "clusters": 4})
    assert list(again.rehearsal(bench.context(stages[2]))) == third
    assert bench.steps[1].made == ["rehearsal/kmeans"]


def test_more_clusters_than_rows_to_take_are_refused() -> None:
    method = make_method("kmeans_rehearsal", {"ratio": 0.1})
    with pytest.raises(RecipeError, match=r"20 clusters, but only 4 of the 40 rows of task first.*lower clusters"):
        method.check(STREAM)


def test_an_absent_embedding_package_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    method = make_method("kmeans_rehearsal", {"embedding": "some/model", "clusters": 2})
    with pytest.raises(MissingExtraError):
        method.check(STREAM)
