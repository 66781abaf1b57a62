"""The improved preset's filters, reason by reason."""

from __future__ import annotations

import pytest

from everlearn.data.instance import Instance
from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.filters import sift, similarity_bound, without_tail
from everlearn.synthesis.parsing import Candidate, Sifted


def one(text: str, answer: str = "yes", *, is_cut: bool = False) -> Candidate:
    return Candidate("Define.", text, answer, is_cut=is_cut)


def sifted(candidates: list[Candidate], *, bound: float = 0.7, labels: tuple[str, ...] = ()) -> Sifted:
    return sift(
        candidates,
        ["the sky is blue today"],
        ["yes", "no"],
        compared=lambda row: row.input,
        bound=bound,
        labels=labels,
    )


def test_each_kind_of_fault_is_dropped_with_its_reason() -> None:
    result = sifted(
        [
            one("grass grows on the hill"),
            one("The sky is blue  today"),
            one("grass grows on the hill!"),
            one("a long story without", "end", is_cut=True),
            one("snow falls in june", "maybe"),
        ],
        labels=("yes", "no"),
    )
    assert [row.input for row in result.kept] == ["grass grows on the hill"]
    assert result.seen == 5
    assert [row["reason"] for row in result.rejected] == [
        "run_on",
        "unknown_label",
        "copy_of_demonstration",
        "duplicate",
    ]


def test_what_no_demonstration_is_like_is_dropped_with_its_reason() -> None:
    pool = [Instance("Define.", "the sky is blue", "небо", "t"), Instance("Define.", "the sea", "море", "t")]
    rows = [one("snow falls", "снег"), one("snow melts", "Snow melts."), one("rain", "."), one("трава", "трава тут")]
    known = [row.input for row in pool]
    answers = [row.output for row in pool]
    arguments = {"compared": lambda row: row.input, "bound": 0.7}
    result = sift(rows, known, answers, expected=Expected(pool), **arguments)  # type: ignore[arg-type]
    assert [row.output for row in result.kept] == ["снег"]
    assert result.dropped == {"copy_of_input": 1, "no_letter": 1, "answers_language": 1}
    assert sift(rows, known, answers, **arguments).kept == rows  # type: ignore[arg-type]


def test_without_labels_any_answer_is_allowed() -> None:
    assert len(sifted([one("snow falls in june", "maybe")]).kept) == 1


def test_an_answer_ends_at_its_first_blank_line_unless_demonstrations_have_some() -> None:
    row = one("x", "yes \n\nAnd now for something else")
    assert without_tail([row], ["yes", "no"])[0].output == "yes"
    assert without_tail([row], ["one\n\ntwo"])[0].output == row.output
    assert sifted([row], labels=("yes", "no")).kept == [one("x", "yes")]


def test_rejected_rows_keep_input_and_answer_for_the_report() -> None:
    (row,) = sifted([one("the sky is blue today")]).rejected
    assert (row["input"], row["outputs"], row["raw_index"]) == ("the sky is blue today", "yes", 0)


def test_the_bound_rises_with_the_likeness_of_the_demonstrations() -> None:
    assert similarity_bound(["red apple", "seven dwarfs"]) == 0.7
    formulaic = ["please have the kitchen on monday for 31", "please have the kitchen on monday for 32"]
    assert 0.7 < similarity_bound(formulaic) < 1
    assert similarity_bound(["same", "same"]) == 1.0


@pytest.mark.parametrize("bound", [0.7, 1.0])
def test_nothing_in_is_nothing_out(bound: float) -> None:
    assert sifted([], bound=bound).kept == []
