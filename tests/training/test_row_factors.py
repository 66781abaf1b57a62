"""Factors of rows: the recorded means of groups, however a step is split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.data.mixture import OWN, Group, Mean, Mixture
from everlearn.training.row_factors import row_factors, shares_of
from everlearn.training.rows import EncodedRow

GOLDEN = Path(__file__).parents[1] / "golden" / "baselines" / "group_means.json"
MEANS: dict[str, Mean] = {"joint": "tokens", "own": "own"}


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["cases"], ids=lambda case: case["id"])
def test_the_recorded_means_of_groups(case: dict) -> None:
    (first, own), *others = case["groups"].items()
    mixture = Mixture(
        tuple(Group(name, (), weight=one["weight"], mean=MEANS[one["mean"]]) for name, one in others),
        (own["weight"], MEANS[own["mean"]]),
    )
    losses = [row["token_losses"] for row in case["rows"]]
    rows = [
        EncodedRow((0,) * (1 + len(of)), 1, OWN if row["group"] == first else row["group"])
        for row, of in zip(case["rows"], losses, strict=True)
    ]
    found = row_factors(rows, shares_of(mixture))
    assert found is not None
    for row, expected in zip(rows, case["expected_token_weights"], strict=True):
        assert [found[id(row)]] * row.answer_count == pytest.approx(expected, abs=1e-9)
    parts = [sum(found[id(rows[at])] * sum(losses[at]) for at in part) for part in case["split_into_parts"]]
    assert parts == pytest.approx(case["expected_part_losses"], abs=1e-8)
    assert sum(parts) == pytest.approx(case["expected_loss"], abs=1e-8)
