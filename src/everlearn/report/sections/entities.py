"""Of rows of words the F1 of each entity type after each stage: what the one score of a stage is made of."""

from __future__ import annotations

from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import score
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.blocks import block

_HELP = (
    "F1 in per cent, higher is better, of each type that has been learnt by then, over the test sentences with any of "
    "these types. The score of a stage is their mean (macro F1) or that of all entities together (micro F1), and "
    "stands for all its tasks."
)


def entities(study: Study) -> Html | None:
    """The section's body; None where the rows are no words."""
    blocks = [block(one, study, _table(one)) for one in study.methods if one.first.matrix and one.first.matrix.types]
    return el("div", el("p", _HELP, class_="soft"), *blocks) if blocks else None


def _table(method: MethodRuns) -> Html:
    matrix = method.first.matrix
    assert matrix is not None, "just looked"
    names = list(matrix.types[-1])
    heads: list[Child] = ["Stage", *(el("th", name_of(name), scope="col") for name in names)]
    rows = [
        el(
            "tr",
            el("th", name_of(stage), scope="row"),
            *(el("td", score(of.get(name)), class_="num") for name in names),
        )
        for stage, of in zip(matrix.stages, matrix.types, strict=False)
    ]
    return scrolling_table("F1 by entity type and stage", heads, rows, css="numbers")
