"""What methods did while stages were trained: the penalty, and whatever their influences have noted of the steps."""

from __future__ import annotations

from pathlib import Path

from everlearn.report.facts.parsing import form_of, number, rows_of
from everlearn.report.facts.reading import Stage
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE, mean, quantity
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.blocks import block

_OF_ANY_TRAINING = ("step", "loss", "learning_rate", "seconds")
_EXPLANATION = (
    "Means over the steps of a stage, and over the last tenth of them. The loss is that of the rows; a penalty comes "
    "on top of it, and one that stays far below it holds nothing back."
)


def acting(study: Study) -> Html | None:
    """The section's body; None where training was plain."""
    parts = [part for method in study.methods if (part := _of_method(method, study)) is not None]
    return el("div", el("p", _EXPLANATION, class_="soft"), *parts) if parts else None


def _of_method(method: MethodRuns, study: Study) -> Html | None:
    run = method.first
    courses = {
        stage: _course(run.stage_folder(stage.index) / "training" / "history.jsonl")
        for stage in run.stages
        if stage.index <= method.finished
    }
    names = dict.fromkeys(name for course in courses.values() for name in course if name not in _OF_ANY_TRAINING)
    if not names:
        return None
    noted = (el("th", name_of(name.replace("_", " ")), scope="col") for name in names)
    heads: list[Child] = ["Stage", "Loss", *noted]
    rows = [_row(stage, course, ("loss", *names)) for stage, course in courses.items()]
    return block(
        method,
        study,
        scrolling_table("What acted while training", heads, rows, css="numbers"),
        remark=f" (seed {run.seed})",
    )


def _course(path: Path) -> dict[str, list[float]]:
    """The values of every step by name."""
    found: dict[str, list[float]] = {}
    with form_of(path):
        for row in rows_of(path):
            for name, value in row.items():
                if (known := number(value)) is not None:
                    found.setdefault(name, []).append(known)
    return found


def _row(stage: Stage, course: dict[str, list[float]], names: tuple[str, ...]) -> Html:
    cells = []
    for name in names:
        values = course.get(name, [])
        end = values[-max(1, len(values) // 10) :]
        told = el("span", f"at the end {quantity(mean(end))}", class_="tag") if values else None
        cells.append(el("td", quantity(mean(values)) if values else NONE, told, class_="num"))
    return el("tr", el("th", name_of(stage.name), scope="row"), *cells)
