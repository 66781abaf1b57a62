"""Benchmarks before the stream and after stages, as lm-evaluation-harness scores them."""

from __future__ import annotations

from everlearn.report.facts.benchmarked import Asked, about, asked, headlines, stages_asked, told, value
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.blocks import block


def benchmarks(study: Study) -> Html | None:
    """The section's body; None where none was asked."""
    if not asked(study.methods):
        return None
    blocks = [block(method, study, _courses(method)) for method in study.methods if stages_asked(method)]
    return el(
        "div",
        el("p", about(study.methods), class_="soft"),
        _side_by_side(study) if len(study.methods) > 1 else None,
        *blocks,
    )


def _side_by_side(study: Study) -> Html:
    """The first number of each benchmark: the base, and every method at its end."""
    shown = headlines(study.methods)
    rows = [_row("base model", [told(value(study.methods[0], 0, one)) for one in shown])]
    for method in study.methods:
        last = [stage for stage in stages_asked(method) if stage]
        cells = [told(value(method, last[-1], one)) if last else NONE for one in shown]
        rows.append(_row(name_of(method.title), cells))
    return scrolling_table("Benchmarks of all methods", ["Method", *map(_head, shown)], rows, css="numbers")


def _courses(method: MethodRuns) -> Html:
    """Every number of a method, before the stream and after the stages that were asked."""
    stages = stages_asked(method)
    names = {stage.index: stage.name for stage in method.first.stages}
    heads: list[Child] = ["Benchmark", "version", "questions"]
    heads += ["base model" if stage == 0 else name_of(f"after {names.get(stage, stage)}") for stage in stages]
    rows = [
        _row(_title(one), [one.version, one.questions, *(told(value(method, stage, one)) for stage in stages)])
        for one in asked([method])
    ]
    return scrolling_table(f"Benchmarks of {method.title}", heads, rows, css="numbers")


def _row(head: Child, cells: list[str]) -> Html:
    return el("tr", el("th", head, scope="row"), *(el("td", cell, class_="num") for cell in cells))


def _head(one: Asked) -> Html:
    return el("th", _title(one), scope="col")


def _title(one: Asked) -> Html:
    better = "higher is better" if one.rises else "lower is better"
    arrow = el("span", one.arrow, class_="arrow", title=better, role="img", aria_label=better)
    return el("span", name_of(one.title), " ", arrow)
