"""What methods have found in the stages, under the names that they gave: numbers by stage, curves, small tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from everlearn.files import read_json
from everlearn.layout import FINDINGS
from everlearn.report.facts.forms import CurveForm, FindingsForm, TableForm, in_form
from everlearn.report.facts.parsing import stands
from everlearn.report.facts.reading import Stage
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import quantity
from everlearn.report.page.panels import Series, line_panel
from everlearn.report.page.svg import nice_axis
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.blocks import block

Form = TypeVar("Form")


def findings(study: Study) -> Html | None:
    """The section's body; None where no method tells anything."""
    parts = [part for method in study.methods if (part := _of_method(method, study)) is not None]
    return el("div", *parts) if parts else None


def _of_method(method: MethodRuns, study: Study) -> Html | None:
    run = method.first
    found: dict[Stage, FindingsForm] = {}
    for stage in run.stages:
        path = run.stage_folder(stage.index) / FINDINGS / "findings.json"
        if stands(path):
            found[stage] = in_form(path, read_json(path), FindingsForm)
    panels = [
        _panel(name, courses) for name, courses in _by_name({stage: form.curves for stage, form in found.items()})
    ]
    tables = [
        table
        for name, of_stages in _by_name({stage: form.tables for stage, form in found.items()})
        for stage, form in of_stages.items()
        for table in (el("h4", name_of(name), ", stage ", name_of(stage.name)), _table(name, form))
    ]
    numbers = _numbers(found)
    if numbers is None and not panels and not tables:
        return None
    return block(
        method,
        study,
        numbers,
        el("div", *panels, class_="panels") if panels else None,
        *tables,
        remark=f" (seed {run.seed})",
    )


def _by_name(courses: Mapping[Stage, Mapping[str, Form]]) -> Iterator[tuple[str, dict[Stage, Form]]]:
    """Each name with what the stages have under it."""
    for name in dict.fromkeys(name for course in courses.values() for name in course):
        yield name, {stage: course[name] for stage, course in courses.items() if name in course}


def _numbers(found: Mapping[Stage, FindingsForm]) -> Html | None:
    """One row a stage."""
    names = list(dict.fromkeys(name for form in found.values() for name in form.numbers))
    if not names:
        return None
    heads: list[Child] = ["Stage", *(el("th", name_of(name), scope="col") for name in names)]
    rows = [
        el(
            "tr",
            el("th", name_of(stage.name), scope="row"),
            *(el("td", quantity(form.numbers.get(name)), class_="num") for name in names),
        )
        for stage, form in found.items()
        if form.numbers
    ]
    return scrolling_table("Numbers by stage", heads, rows, css="numbers")


def _panel(name: str, courses: Mapping[Stage, CurveForm]) -> Html:
    """A chart with a line for each stage."""
    lines = [
        Series(str(stage.index), [(x or 0.0, y) for x, y in course.points], style, markers=False)
        for style, (stage, course) in enumerate(courses.items())
    ]
    across = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points if y is not None]
    x = nice_axis(min(across, default=0), max(across, default=1), next(iter(courses.values())).x)
    y = nice_axis(min(values, default=0), max(values, default=1))
    ends = ((stage.name, [y for _, y in course.points if y is not None]) for stage, course in courses.items())
    spoken = "; ".join(f"stage {stage} ends at {quantity(ys[-1])}" for stage, ys in ends if ys)
    return el(
        "figure",
        el("figcaption", el("strong", name_of(name)), ", by stage"),
        line_panel(name, spoken, x, y, lines),
        class_="panel",
    )


def _table(name: str, table: TableForm) -> Html:
    first, *others = table.heads
    heads: list[Child] = [name_of(first), *(el("th", name_of(head), scope="col") for head in others)]
    rows = [
        el("tr", el("th", name_of(_cell(row[0])), scope="row"), *(el("td", _shown(cell)) for cell in row[1:]))
        for row in table.rows
    ]
    return scrolling_table(name, heads, rows, css="numbers")


def _cell(cell: str | float | None) -> str:
    return cell if isinstance(cell, str) else quantity(cell)


def _shown(cell: str | float | None) -> Html:
    return name_of(_cell(cell))
