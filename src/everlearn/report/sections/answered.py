"""How rows are answered, which must be known before scores are compared: by several models, or knowing their task."""

from __future__ import annotations

from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Html, el
from everlearn.report.page.numbers import plural


def answered(method: MethodRuns) -> Html | None:
    """What to know of a method's answers; None where one model gives them all."""
    answers = method.first.answers
    if answers is None or (answers.knows_task and method.first.scenario == "task_incremental"):
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


def scenario(study: Study) -> tuple[str, str] | None:
    """The scenario of a stream whose tasks bring classes, and what an answer is in it; None for other streams."""
    run = study.methods[0].first if study.methods else None
    if run is None or run.scenario is None:
        return None
    classes = plural(sum(task.classes for task in run.tasks), "class", "classes")
    if run.scenario == "task_incremental":
        return "Task-incremental", (
            f"{classes} in {plural(len(run.tasks), 'task')}; the task of a row is known when it is answered, so the "
            "answer is the likeliest of its task's classes"
        )
    return "Class-incremental", (
        f"{classes} in {plural(len(run.tasks), 'task')}; the task of a row is unknown when it is answered, and an "
        "answer that is no class is wrong"
    )
