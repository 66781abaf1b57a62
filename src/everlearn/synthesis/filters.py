"""Filters of the improved preset, on candidates that the parser kept; none of them is in the published method.

They mend what the published pipeline lets through (spec section 12): run-on answers (P3), copies of the
demonstrations and of each other (P6), and, where the base model's own answers are rehearsed, answers that are none of
the task's labels (P7); and rows that are like no demonstration (`degenerate.py`). In order, each with its reason:
`run_on`, `unknown_label`, `copy_of_input`, `no_letter`, `answers_language`, `copy_of_demonstration`, `duplicate`. All
work on characters, in any language.

How alike is too alike? In tasks with fixed forms of words all inputs resemble each other, so the bound is taken from
the data: two texts are the same when they are more alike than any two demonstrations are, and at least 0.7 alike
(the bound of Self-Instruct's ROUGE-L filter, arXiv 2212.10560).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.parsing import Candidate, Sifted
from everlearn.synthesis.similarity import first_of_each_kind, greatest_similarity

LEAST_BOUND = 0.7


def similarity_bound(demonstrations: Sequence[str]) -> float:
    """Texts more alike than this count as the same; see the module's head."""
    return max(LEAST_BOUND, greatest_similarity(demonstrations))


def without_tail(candidates: Sequence[Candidate], answers: Sequence[str]) -> list[Candidate]:
    """Answers cut at their first blank line, when no demonstration's answer has one."""
    if any("\n\n" in text for text in answers):
        return list(candidates)
    return [replace(row, output=row.output.split("\n\n")[0].rstrip()) for row in candidates]


def sift(
    candidates: Sequence[Candidate],
    demonstrations: Sequence[str],
    answers: Sequence[str],
    *,
    compared: Callable[[Candidate], str],
    bound: float,
    labels: Sequence[str] = (),
    expected: Expected | None = None,
) -> Sifted:
    """Drops what is no usable new instance.

    Args:
        candidates: From the parser, in order; the first of two that are alike is kept.
        demonstrations: What is compared of each demonstration of the pool.
        answers: Of the demonstrations.
        compared: What is compared of a candidate.
        bound: Texts more alike than this are the same.
        labels: The only answers allowed; empty: any.
        expected: What the demonstrations let expect; None: anything.
    """
    result = Sifted(seen=len(candidates))
    remaining = []
    for row in without_tail(candidates, answers):
        fault = "run_on" if row.is_cut else "unknown_label" if labels and row.output not in labels else None
        if not fault and expected:
            fault = expected.fault_of_answer(row.instruction, row.input, row.output)
            fault = fault or ("answers_language" if expected.is_answers_language(row.input) else None)
        if fault:
            result.drop(row.query, fault, row.raw_index, input=row.input, outputs=row.output)
        else:
            remaining.append(row)
    repeats = first_of_each_kind([compared(row) for row in remaining], demonstrations, bound)
    for row, repeated in zip(remaining, repeats, strict=True):
        if repeated is None:
            result.kept.append(row)
        else:
            reason = "copy_of_demonstration" if repeated < 0 else "duplicate"
            result.drop(row.query, reason, row.raw_index, input=row.input, outputs=row.output)
    return result
