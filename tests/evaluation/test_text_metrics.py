"""Text metrics against the published code's own scores and against plain definitions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.evaluation.text_metrics import (
    METRICS,
    exact_match,
    longest_common_subsequence,
    published_tokens,
    rouge_1,
    rouge_l,
    rouge_l_word,
    token_f1,
)


def test_rouge_equals_the_published_evaluation(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "golden/ssr/rouge.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        assert published_tokens(case["prediction"]) == case["prediction_tokens"]
        assert published_tokens(case["label"]) == case["label_tokens"]
        assert rouge_l(case["prediction"], [case["label"]]) == pytest.approx(case["rouge_l"], abs=1e-4)
        assert rouge_1(case["prediction"], [case["label"]]) == pytest.approx(case["rouge_1"], abs=1e-4)


def test_the_mean_over_a_corpus_equals_the_published_one(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "golden/ssr/rouge_corpus_mean.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        scores = [rouge_l(prediction, [label]) for prediction, label in case["pairs"]]
        assert sum(scores) / len(scores) == pytest.approx(case["mean_rouge_l"], abs=1e-4)


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_the_common_subsequence_equals_the_textbook_table(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(left, right) == table[-1][-1]


@pytest.mark.parametrize("name", METRICS)
@given(prediction=st.text(max_size=30), reference=st.text(max_size=30))
def test_every_score_is_a_percentage(name: str, prediction: str, reference: str) -> None:
    assert 0 <= METRICS[name](prediction, [reference]) <= 100


def test_hand_worked_scores() -> None:
    assert exact_match("  The CAT.", ["the cat"]) == 100
    assert exact_match("cat", ["the cat"]) == 0
    assert token_f1("the cat sat", ["the cat"]) == pytest.approx(80)
    assert rouge_l_word("The cat sat.", ["the cat"]) == pytest.approx(80)
    assert exact_match("two", ["one", "two"]) == 100
