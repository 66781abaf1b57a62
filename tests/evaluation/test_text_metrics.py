"""Text metrics against the published code's own scores, recorded ones of other packages and plain definitions."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.errors import RecipeError
from everlearn.evaluation.segmentation import counted_tokens, published_tokens, unicode_words, word_tokens
from everlearn.evaluation.text_metrics import (
    METRICS,
    accuracy,
    exact_match,
    get_metric,
    longest_common_subsequence,
    rouge_1,
    rouge_l,
    rouge_l_unicode,
    rouge_l_word,
    token_f1,
)


def test_rouge_equals_the_published_evaluation(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "ssr/rouge.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= 20
    for case in cases:
        assert list(published_tokens(case["prediction"])) == case["prediction_tokens"]
        assert list(published_tokens(case["label"])) == case["label_tokens"]
        assert rouge_l(case["prediction"], [case["label"]]) == pytest.approx(case["rouge_l"], abs=1e-4)
        assert rouge_1(case["prediction"], [case["label"]]) == pytest.approx(case["rouge_1"], abs=1e-4)


def test_the_mean_over_a_corpus_equals_the_published_one(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "ssr/rouge_corpus_mean.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        scores = [rouge_l(prediction, [label]) for prediction, label in case["pairs"]]
        assert sum(scores) / len(scores) == pytest.approx(case["mean_rouge_l"], abs=1e-4)


@pytest.mark.parametrize(
    ("prediction", "reference", "rouge_l_score", "rouge_1_score"),
    [
        # Recorded with jieba 0.42.1 and rouge-chinese 1.0.3.
        ("……”天气 - ...... cat...... \r\n，", "？   \xa03.5%'-C++’ - the", 11.1111, 13.3333),
        ("a ” . ", ".'cat ， ......_’\t ", 20.0, 20.0),
        ("\t ！ ！天气'", "...... \n天气\u3000 ！， ", 22.2222, 50.0),
    ],
)
def test_rouge_keeps_the_published_package_at_its_oddest(
    prediction: str, reference: str, rouge_l_score: float, rouge_1_score: float
) -> None:
    found = (rouge_l(prediction, [reference]), rouge_1(prediction, [reference]))
    assert found == (rouge_l_score, rouge_1_score)


def test_a_sentence_of_white_space_counts_as_one_token_as_published() -> None:
    assert counted_tokens("What is it? \nWhat?") == ("What", "is", "it", "?", "", "What", "?")
    assert counted_tokens("\nWhat? \n") == ("What", "?")  # but not before the first or after the last sentence
    assert published_tokens("What is it? \nWhat?") == ("What", "is", "it", "?", "What", "?")


def test_text_without_han_is_cut_alike_whether_all_words_are_known_or_not() -> None:
    draw = random.Random(0)
    pieces = [*"ATcC+&#-._% \n?é", "AT&T", "c++", "C#", "3.5%", "état"]
    for text in ("".join(draw.choices(pieces, k=9)) for _ in range(500)):
        assert (*published_tokens(text), "天") == published_tokens(f"{text} 天")


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # Recorded with rouge_score 0.1.2, RougeScorer(['rougeL'], use_stemmer=False).
        ("The Cat sat on the mat.", "the cat is on the mat", 83.33333333333334),
        ("última novela", "ultima novela", 50.0),
        ("don't stop", "do not stop", 33.33333333333333),
        ("state-of-the-art", "State of the art model", 88.8888888888889),
        ("", "x", 0.0),
        ("...", "...", 0.0),
        ("a b c d e", "e d c b a", 20.0),
        ("got lost in the woods, called parents", "i got lost in the woods and called my parents", 82.35294117647058),
    ],
)
def test_the_word_form_equals_the_rouge_score_package(prediction: str, reference: str, expected: float) -> None:
    assert rouge_l_word(prediction, [reference]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Быстрая лиса, 3.5% don't", ["быстрая", "лиса", "3.5", "don't"]),
        ("तेज़ भूरी लोमड़ी", ["तेज़", "भूरी", "लोमड़ी"]),
        ("الثعلب البني", ["الثعلب", "البني"]),
        ("빠른 갈색 여우가!", ["빠른", "갈색", "여우가"]),
        ("את הילד", ["את", "הילד"]),
        ("中文。", ["中", "文"]),
        ("茶色のキツネ", ["茶", "色", "の", "キツネ"]),
        ("última", ["última"]),
        ("e\u0301te\u0301", ["\u00e9t\u00e9"]),
        ("👍 !", ["👍", "!"]),
        ("", []),
    ],
)
def test_words_of_other_scripts_are_unicode_s(text: str, words: list[str]) -> None:
    import unicodedata

    assert list(unicode_words(text)) == [unicodedata.normalize("NFC", word) for word in words]


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("Быстрая лиса", "быстрая рыжая лиса", 80.0),
        ("собака", "кошка", 0.0),  # letters that both have count for nothing
        ("بيت كبير", "بيت صغير", 50.0),
        ("The Cat sat on the mat.", "the cat is on the mat", 100 * 10 / 12),
    ],
)
def test_rouge_over_unicode_words_by_hand(prediction: str, reference: str, score: float) -> None:
    assert rouge_l_unicode(prediction, [reference]) == pytest.approx(score)


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_the_common_subsequence_equals_the_textbook_table(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(left, right) == table[-1][-1]


def test_answers_of_512_tokens_take_milliseconds() -> None:
    left, right = ([f"w{(i * step) % 97}" for i in range(512)] for step in (5, 11))
    began = time.process_time()  # what this process computed, however busy the machine
    for _ in range(20):
        longest_common_subsequence(left, right)
    assert (time.process_time() - began) / 20 < 0.05


@pytest.mark.parametrize("name", METRICS)
@given(prediction=st.text(max_size=30), reference=st.text(max_size=30))
def test_every_score_is_a_percentage(name: str, prediction: str, reference: str) -> None:
    assert 0 <= METRICS[name](prediction, [reference]) <= 100


@pytest.mark.parametrize("name", [name for name in METRICS if name != "chrf"])  # which minds recall more
@given(prediction=st.text(max_size=30), reference=st.text(max_size=30))
def test_every_score_is_the_same_both_ways_round(name: str, prediction: str, reference: str) -> None:
    metric = METRICS[name]
    assert metric(prediction, [reference]) == pytest.approx(metric(reference, [prediction]))


@pytest.mark.parametrize("name", METRICS)
@given(words=st.lists(st.sampled_from(["cat", "dog", "3", "red"]), min_size=1))
def test_an_answer_like_its_gold_scores_full(name: str, words: list[str]) -> None:
    assert METRICS[name](" ".join(words), [" ".join(words)]) == 100


@pytest.mark.parametrize("name", METRICS)
def test_the_best_of_several_references_counts(name: str) -> None:
    metric = METRICS[name]
    assert metric("the red cat", ["a dog", "the red cat"]) == 100
    assert metric("the red cat", ["if so", "is bus"]) == 0


def test_exact_match_ignores_case_punctuation_and_spacing() -> None:
    assert exact_match("  The\n CAT.", ["the cat"]) == 100
    assert exact_match("cat", ["the cat"]) == 0


def test_answers_of_punctuation_alone_are_compared_as_they_are() -> None:
    assert exact_match("-", ["+"]) == 0
    assert exact_match(" + ", ["+"]) == 100
    assert token_f1("-", ["+"]) == 0
    assert token_f1("+", ["+"]) == 100


def test_accuracy_wants_the_label_and_nothing_more() -> None:
    assert accuracy(" Positive\n", ["positive"]) == 100
    assert accuracy("positive.", ["positive"]) == 0
    assert accuracy("positive positive", ["positive"]) == 0


def test_token_f1_by_hand() -> None:
    assert token_f1("the cat sat", ["the cat"]) == pytest.approx(80)
    assert token_f1("a a b", ["a b b"]) == pytest.approx(200 * 2 / 6)
    assert token_f1("cat", ["dog"]) == 0
    assert token_f1("", ["dog"]) == 0
    assert token_f1("", [" "]) == 100


def test_words_are_runs_of_ascii_letters_and_digits() -> None:
    assert word_tokens("Don't: 3.5% ÉTÉ_x") == ["don", "t", "3", "5", "t", "x"]


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'rouge_L'.*did you mean 'rouge_l'"):
        get_metric("rouge_L")


def test_scoring_prints_nothing_and_leaves_no_cache(tmp_path: Path) -> None:
    code = (
        "import sys, everlearn.evaluation.text_metrics as m; assert 'jieba' not in sys.modules; "
        "assert m.rouge_l('C++ is', ['C++ is']) == 100"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert run.stdout == run.stderr == ""
    assert list(tmp_path.iterdir()) == []
