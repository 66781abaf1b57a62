"""Rehearsal of real rows near cluster centres."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import everlearn.models.embeddings as embeddings
from everlearn.errors import MissingExtraError, RecipeError
from everlearn.methods.registry import make_method
from tests.methods.contexts import Bench, facts_of, number_stream

STREAM = number_stream()


def test_rows_are_those_nearest_to_the_centres_of_their_clusters(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    angles = [0.0 if at < 20 else 1.5 if at < 30 else 3.0 for at in range(40)]
    angles = [angle + 0.01 * (at % 10) for at, angle in enumerate(angles)]
    points = {f"is the number {1000 + 37 * at}": (np.cos(angle), np.sin(angle)) for at, angle in enumerate(angles)}

    def embed(loaded: object, texts: Sequence[str], **_: object) -> np.ndarray:
        return np.array([points[text] for text in texts], dtype=np.float32)

    monkeypatch.setattr(embeddings, "embed_texts", embed)
    for ratio, counts in (
        (0.2, {"low": 4, "middle": 2, "high": 2}),
        (0.15, {"low": 3, "middle": 2, "high": 2}),  # of 6 wanted: 3, 1.5 and 1.5, each rounded by itself
    ):
        method = make_method("kmeans_rehearsal", {"ratio": ratio, "clusters": 3})
        rows = method.rehearsal(Bench(tmp_path, tiny_model).context(method.stages(STREAM)[1])).rows
        places = [int(row.id.removeprefix("n")) for row in rows]
        assert Counter("low" if at < 20 else "middle" if at < 30 else "high" for at in places) == counts
        assert {at % 10 for at in places} <= {3, 4, 5, 6}  # the middle of each cluster's arc


def test_selection_is_made_once_and_kept_with_the_stage_of_its_task(tmp_path: Path, tiny_model: Path) -> None:
    method = make_method("kmeans_rehearsal", {"ratio": 0.25, "clusters": 4})
    bench = Bench(tmp_path, tiny_model)
    stages = method.stages(STREAM)
    second = method.rehearsal(bench.context(stages[1])).rows
    third = method.rehearsal(bench.context(stages[2])).rows
    assert third[: len(second)] == second
    assert [row.task for row in third] == ["first"] * len(second) + ["second"] * (len(third) - len(second))
    assert bench.steps[1].made == ["rehearsal/kmeans"]
    assert bench.steps[2].made == ["rehearsal/kmeans"]
    again = make_method("kmeans_rehearsal", {"ratio": 0.25, "clusters": 4})
    assert again.rehearsal(bench.context(stages[2])).rows == third
    assert bench.steps[1].made == ["rehearsal/kmeans"]


def test_another_row_option_or_base_selects_again(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    options = {"ratio": 0.25, "clusters": 4}
    stage = make_method("kmeans_rehearsal", options).stages(STREAM)[1]
    context = bench.context(stage)
    task = stage.seen[0]
    fewer = replace(context, stage=replace(stage, seen=(replace(task, train=task.train[1:]),)))
    for number, (changed, one) in enumerate(
        (
            (options, context),
            ({**options, "clusters": 3}, context),
            ({**options, "ratio": 0.5}, context),
            (options, fewer),
            (options, replace(context, base_fingerprint="other")),
        ),
        1,
    ):
        make_method("kmeans_rehearsal", changed).rehearsal(one)
        assert len(bench.steps[1].made) == number
    make_method("kmeans_rehearsal", options).rehearsal(context)
    assert len(bench.steps[1].made) == number


def test_more_clusters_than_rows_to_take_are_refused() -> None:
    method = make_method("kmeans_rehearsal", {"ratio": 0.09})
    with pytest.raises(RecipeError, match=r"20 clusters, but only 4 of the 40 rows of task first.*lower clusters"):
        method.check(facts_of(STREAM))


def test_the_last_task_is_not_rehearsed_and_may_have_fewer_rows() -> None:
    last = replace(STREAM.tasks[2], train=STREAM.tasks[2].train[:5])
    make_method("kmeans_rehearsal", {"ratio": 0.5}).check(facts_of(replace(STREAM, tasks=(*STREAM.tasks[:2], last))))


def test_an_absent_embedding_package_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    method = make_method("kmeans_rehearsal", {"embedding": "some/model", "clusters": 2})
    with pytest.raises(MissingExtraError):
        method.check(facts_of(STREAM))
