"""What a section has of one method: under its name, folded where there are many methods."""

from __future__ import annotations

from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of


def block(method: MethodRuns, study: Study, *parts: Child, remark: str = "") -> Html:
    """A method's part of a section.

    Args:
        method: Whose it is.
        study: Says whether the name is needed, and whether there are many.
        parts: What it shows.
        remark: After the name where there are several seeds.
    """
    seeds = el("span", remark, class_="soft") if remark and len(method.runs) > 1 else None
    if study.is_crowded:
        return el("details", el("summary", el("strong", name_of(method.title)), seeds), *parts, class_="method")
    title = el("h3", name_of(method.title), seeds) if study.is_comparison else None
    return el("div", title, *parts, class_="method")
