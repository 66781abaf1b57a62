"""Runs whose rows are answered by several models: what chooses among them must be known before scores are compared."""

from __future__ import annotations

from everlearn.report.facts.study import MethodRuns
from everlearn.report.page.markup import Html, el


def answered(method: MethodRuns) -> Html | None:
    """What to know of a method's answers; None where one model gives them all."""
    answers = method.first.answers
    if answers is None:
        return None
    if answers.knows_task:
        kind = "Task-incremental"
        told = (
            f"{method.title} is told which task each row belongs to, and answers it with one of {answers.models} "
            "models: compare it only with methods that are told the same."
        )
    else:
        kind = "Several models"
        told = (
            f"{method.title} answers each row with one of {answers.models} models, chosen by what the row asks; the "
            "general ability is that of the latest."
        )
    return el("p", el("strong", kind), f": {told}", class_="banner", role="note")
