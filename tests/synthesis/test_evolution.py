"""Which rows are hard and who labels them, against the released code; the step itself is in `methods/test_sers.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.evaluation.text_metrics import rouge_l
from everlearn.synthesis.evolution import hard_rows, labelled

GOLDEN = Path(__file__).parents[1] / "golden" / "sers"


def cases(name: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in json.loads((GOLDEN / name).read_text())["cases"]]


@pytest.mark.parametrize("case", cases("hard_set.json"))
def test_the_rows_of_least_agreement_are_hard_and_ties_keep_their_order(case: dict) -> None:
    assert hard_rows(case["rouge_l"], case["se_ratio"] / 100) == case["expected_hard_indices"]


@pytest.mark.parametrize("case", cases("rouge_l.json"))
def test_agreement_is_the_published_rouge(case: dict) -> None:
    assert rouge_l(case["prediction"], [case["reference"]]) == pytest.approx(case["expected_rouge_l"], abs=1e-4)


@pytest.mark.parametrize("case", cases("label_file.json"))
def test_labels_take_the_place_of_what_was_written_before_in_the_rows_order(case: dict) -> None:
    mixed, others = case["labels_for_hard_in_that_order"], case["labels_for_rest_in_file_order"]
    assert labelled(case["rows"], case["hard_indices"], mixed, others) == case["expected_rows"]
