"""Probes against the published ones, and what the default schedule is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.evaluation import probing
from everlearn.evaluation.probing import PROBES, Fitted, Probe, Rows, fitted, predicted, prototypes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "seq" / "probing.json").read_text())
PUBLISHED_NAMES = {
    "linear": "LinearProb",
    "cosine_linear": "CosineLinearProb",
    "prototype": "PrototypeProb",
    "cosine_prototype": "CosinePrototypeProb",
}


def heads_of(case: dict[str, Any], part: str) -> list[list[Rows]]:
    """The rows of each task for each head: of one for all tasks, or of one a task."""
    sizes = case["classes_per_task"]
    tasks = zip(case[part]["features"], case[part]["label_cil"], sizes, np.cumsum([0, *sizes]), strict=False)
    if case["il_mode"] == "CIL":
        return [[Rows(np.array(features), np.array(labels), sum(sizes)) for features, labels, _, _ in tasks]]
    return [[Rows(np.array(features), np.array(labels) - first, size)] for features, labels, size, first in tasks]


def joined(parts: list[Rows]) -> Rows:
    features, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "labels"))
    return Rows(features, labels, parts[0].classes)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["il_mode"])
def test_published_schedule_gives_the_published_weights_and_scores(case: dict[str, Any], probe: Probe) -> None:
    train, test = heads_of(case, "train"), heads_of(case, "test")
    scores = []
    for head, parts in enumerate(train):
        rows = joined(parts)
        count = len(rows.labels)
        if "prototype" in probe:
            made, expected = Fitted(prototypes(rows)), case["prototype_weights"][head]
        else:
            kind = "cosine" if "cosine" in probe else "linear"

            def turned(epoch: int, head: int = head, count: int = count) -> np.ndarray:
                return np.roll(np.arange(count), -37 * (epoch * len(train) + head))

            start = np.array(case[f"{kind}_init"][head])
            made = probing.trained_as_published(rows, start, kind == "cosine", turned)
            expected = case[f"{kind}_final"][head]
        np.testing.assert_allclose(made.weights, expected, atol=1e-8)
        for part in test[head]:
            right = predicted(probe, made, part.features) == part.labels
            scores.append(round(100 * float(right.mean()), 3))
    assert scores == case["scores"][PUBLISHED_NAMES[probe]]


def separable(rows: int = 60, classes: int = 4, width: int = 8, offset: float = 0.0) -> Rows:
    """Classes around points of their own, all of them far from the origin in one direction."""
    draws = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    centres = draws.normal(size=(classes, width))
    features = centres[labels] + 0.2 * draws.normal(size=(rows, width)) + offset
    return Rows(features.astype(np.float32), labels, classes)


def test_converged_probe_separates_few_rows_that_the_published_schedule_leaves_near_chance() -> None:
    rows = separable(offset=20.0)
    found = {}
    for schedule in ("converged", "published"):
        made = fitted("linear", rows, schedule, seed=1)  # type: ignore[arg-type]
        found[schedule] = (predicted("linear", made, rows.features) == rows.labels).mean()
    assert found["converged"] == 1.0
    assert found["published"] < 0.6
    assert fitted("linear", rows, "published", seed=1).steps == probing.EPOCHS, "one chunk where there are no 128 rows"


@pytest.mark.parametrize("is_cosine", [False, True])
def test_converged_probe_ends_at_the_minimum(is_cosine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = GOLDEN[0]
    rows = joined(heads_of(case, "train")[0])
    found = probing.trained_until_flat(rows, is_cosine)
    monkeypatch.setattr(probing, "FLAT", 1e-13)
    least = probing.trained_until_flat(rows, is_cosine)
    assert found.is_flat
    assert found.steps < least.steps
    assert least.loss <= found.loss < least.loss + 1e-3
    monkeypatch.setattr(probing, "MOST_ITERATIONS", 2)
    assert not probing.trained_until_flat(rows, is_cosine).is_flat


def test_linear_minimum_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    rows = joined(heads_of(GOLDEN[0], "train")[0])
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=5000).fit(rows.features, rows.labels)
    expected = log_loss(rows.labels, other.predict_proba(rows.features))
    assert probing.trained_until_flat(rows, False).loss == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("probe", PROBES)
def test_class_without_training_rows_is_never_answered_by_a_prototype(probe: Probe) -> None:
    rows = separable()
    wider = Rows(rows.features, rows.labels, rows.classes + 1)
    made = fitted(probe, wider, "converged", seed=0)
    if "prototype" in probe:
        assert np.isnan(made.weights[-1]).all()
    assert set(predicted(probe, made, -rows.features)) <= set(range(rows.classes + ("linear" in probe)))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("schedule", ["converged", "published"])
def test_same_seed_gives_the_same_probe(probe: Probe, schedule: probing.Schedule) -> None:
    first, second = (fitted(probe, separable(), schedule, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
