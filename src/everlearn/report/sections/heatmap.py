"""The accuracy matrix as a heat map: an HTML table whose cells hold the numbers, so that colour is never needed."""

from __future__ import annotations

from everlearn.report.facts.definitions import metric_title
from everlearn.report.facts.empty import empty_answers
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import interval, plural, score
from everlearn.report.page.svg import short
from everlearn.report.page.tables import scrolling_table

STEPS = 10
WIDE = 7  # more tasks than that: one map a row, heads upright


def heat_maps(study: Study) -> Html:
    """One matrix per method, and how to read them."""
    measured = [method for method in study.methods if any_measured(method, study)]
    figures = [_figure(method, study) for method in measured if method in study.in_front]
    others = [_figure(method, study) for method in measured if method not in study.in_front]
    css = "maps" if len(measured) > 1 and len(study.tasks) <= WIDE else "maps one"
    scale = el(
        "span",
        *(
            el("span", str(step * 10) if step in (0, 5, 10) else "\u00a0", class_=f"cell h{step}")
            for step in range(STEPS + 1)
        ),
        class_="scale",
        aria_hidden="true",
    )
    small = "range over the seeds" if study.has_seeds else study.level
    return el(
        "div",
        el(
            "p",
            f"Rows: after which stage; columns: which task; {_metrics(study)}in per cent, higher is better. "
            "Outlined: just after the task was learnt; below it: what has been kept; above it: before its turn. ",
            f"Small figures: {small}. ",
            scale,
            class_="soft",
        ),
        el("div", *figures, class_=css),
        el(
            "details",
            el("summary", f"The other {plural(len(others), 'method')} (above: the best of each kind)"),
            el("div", *others, class_=css),
        )
        if others
        else None,
    )


def matrix_title(study: Study) -> str:
    """What the matrix shows: the metric of all tasks, or scores where they differ."""
    name = metric_title(study.shared_metric) or "scores"
    return f"{name[0].upper()}{name[1:]} after every stage"


def any_measured(method: MethodRuns, study: Study) -> bool:
    """Whether there is any number to show."""
    return any(value is not None for task in study.tasks for value in method.course(task))


def _metrics(study: Study) -> str:
    if study.shared_metric:
        return f"{metric_title(study.shared_metric)} "
    return f"{', '.join(f'{short(task, 22)} {metric_title(study.metric_of(task))}' for task in study.tasks)}; "


def level_of(value: float) -> int:
    """The step of the colour scale, 0 to 10."""
    return round(min(100.0, max(0.0, value)) / 100 * STEPS)


def _figure(method: MethodRuns, study: Study) -> Html:
    seeds = f", mean of {len(method.runs)} seeds" if len(method.runs) > 1 else ""
    tag = el("span", f" {method.remark}", class_="tag") if method.remark else None
    heads: list[Child] = ["after"]
    for task in study.tasks:
        tip = f"{task}: {metric_title(study.metric_of(task))}"
        heads.append(el("th", el("span", name_of(short(task, 22))), scope="col", title=tip))
    rows = []
    for stage in range(method.finished + 1):
        name = "base model" if stage == 0 else method.first.stages[stage - 1].name
        trained = method.first.stages[stage - 1].tasks if stage else ()
        cells = [_cell(method, stage, task, just_learnt=task in trained) for task in study.tasks]
        if stage or any(method.score(0, task).value is not None for task in study.tasks):
            rows.append(el("tr", el("th", name_of(short(name, 26)), scope="row", title=name), *cells))
    return el(
        "figure",
        el("figcaption", el("strong", name_of(method.title)), seeds, tag),
        scrolling_table(
            f"{matrix_title(study)}: {method.title}",
            heads,
            rows,
            css=f"heat{' many' if len(study.tasks) > WIDE else ''}",
            style=f"--columns:{len(study.tasks)}",
        ),
        el("p", told, class_="soft") if (told := empty_answers(method, study)) else None,
        class_="map",
    )


def _cell(method: MethodRuns, stage: int, task: str, *, just_learnt: bool) -> Html:
    entry = method.score(stage, task)
    if entry.value is None:
        return el("td", "·", class_="missing", title="not measured")
    ends = f"{entry.low:.0f}–{entry.high:.0f}" if entry.low is not None and entry.high is not None else None
    css = f"h{level_of(entry.value)}{' learnt' if just_learnt else ''}"
    tip = f"{task}: {score(entry.value)}" + (f" ({interval(entry.low, entry.high)})" if ends else "")
    return el("td", score(entry.value), el("span", ends, class_="ends") if ends else None, class_=css, title=tip)
