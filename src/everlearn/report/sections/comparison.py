"""Methods side by side: one table with all numbers, and a dot plot of those that decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everlearn.report.facts.definitions import MICROTASKS, PERPLEXITY, Meaning, written
from everlearn.report.facts.kinds import grouped
from everlearn.report.facts.reading import Estimate
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE, duration, interval, mean, score
from everlearn.report.page.panels import Dot, dot_panel, key_of
from everlearn.report.page.svg import STYLES, Rule
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.headline import best_of, ranking
from everlearn.report.sections.tiles import direction_of


def comparison(study: Study) -> Html:
    """Table and dot plots."""
    return el(
        "div",
        _verdict(study),
        *_filters(study),
        _table(study),
        el("p", _reading_help(study), class_="soft"),
        el("div", *_plots(study), class_="panels two"),
    )


def base_average(study: Study) -> float | None:
    """Mean score of the base model over all tasks."""
    values = [study.methods[0].score(0, task).value for task in study.tasks] if study.methods else []
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _table(study: Study) -> Html:
    columns = study.meanings
    general = next((meaning for meaning in (MICROTASKS, PERPLEXITY) if _any_general(study, meaning)), None)
    heads: list[Child] = ["Method"]
    for meaning in [*columns, *([general] if general else [])]:
        heads.append(
            el(
                "th",
                el("a", meaning.short, href=f"#is-{meaning.key}", title=f"{meaning.title}: {meaning.plain}"),
                " ",
                direction_of(meaning),
                scope="col",
            )
        )
    heads.append(
        el("th", "Time ", el("span", "↓", class_="arrow", role="img", aria_label="lower is better"), scope="col")
    )
    best = {meaning.key: best_of(study, meaning) for meaning in columns}
    rows = [_base_row(study, columns, general)]
    kinds = grouped(study.methods) if study.is_crowded else {"": list(study.methods)}
    for place, (kind, methods) in enumerate(kinds.items()):
        if kind:
            rows.append(_kind_row(kind, len(heads), place))
        rows += _method_rows(methods, study, columns, general, best, f"of-kind-{place}" if kind else "")
    return scrolling_table("Comparison of methods", heads, rows, css="numbers")


def _method_rows(
    methods: Sequence[MethodRuns],
    study: Study,
    columns: Sequence[Meaning],
    general: Meaning | None,
    best: Mapping[str, list[MethodRuns]],
    css: str,
) -> list[Html]:
    rows = []
    for method in methods:
        cells: list[Child] = [_method_head(method, study)]
        for meaning in columns:
            cells.append(_cell(meaning, method.estimate(meaning.key), bold=method in best[meaning.key]))
        if general:
            cells.append(_cell(general, method.general(method.finished, general.key), bold=False))
        time = method.seconds
        cells.append(el("td", duration(time.value), class_="num"))
        rows.append(el("tr", *cells, class_=" ".join(filter(None, ("bound" * method.is_reference, css))) or None))
    return rows


def _kind_row(kind: str, columns: int, place: int) -> Html:
    return el("tr", el("th", kind, colspan=columns, scope="colgroup"), class_=f"kind of-kind-{place}")


def _filters(study: Study) -> list[Html]:
    """Boxes that show and hide kinds of methods; the style sheet does it, since the page has no script."""
    if not study.is_crowded:
        return []
    boxes = [
        el(
            "label",
            el("input", type="checkbox", id=f"kind-{place}", checked=True),
            f" {kind} ({len(methods)})",
            class_="keyed",
        )
        for place, (kind, methods) in enumerate(grouped(study.methods).items())
    ]
    return [el("fieldset", el("legend", "Shown in the table"), *boxes, class_="filters")]


def _method_head(method: MethodRuns, study: Study) -> Html:
    remarks = [remark for remark in (method.remark, method.shortfall) if remark]
    in_front = study.in_front
    drawn = key_of(in_front.index(method), hollow=method.is_reference) if method in in_front else None
    return el(
        "th",
        drawn,
        " " if drawn else None,
        name_of(method.title),
        el("span", "; ".join(remarks), class_="tag") if remarks else None,
        scope="row",
    )


def _base_row(study: Study, columns: Sequence[Meaning], general: Meaning | None) -> Html | None:
    average = base_average(study)
    if average is None:
        return None
    cells: list[Child] = [el("th", "base model", el("span", "before any training", class_="tag"), scope="row")]
    for meaning in columns:
        cells.append(el("td", score(average) if meaning.key == "AR" else NONE, class_="num"))
    if general:
        cells.append(_cell(general, study.methods[0].general(0, general.key), bold=False))
    cells.append(el("td", NONE, class_="num"))
    return el("tr", *cells, class_="base")


def _cell(meaning: Meaning, entry: Estimate, *, bold: bool) -> Html:
    text = written(meaning, entry.value).removesuffix("%").rstrip()
    value = el("strong", text) if bold else text
    ends = interval(entry.low, entry.high)
    return el("td", value, el("span", ends, class_="ends") if ends else None, class_="num")


def _verdict(study: Study) -> Html | None:
    """Whether the two best can be told apart by their intervals of AR."""
    ranked = ranking(study)
    if len(ranked) < 2:
        return None
    first, second = ranked[0].estimate("AR"), ranked[1].estimate("AR")
    if first.low is None or second.high is None:
        return None
    if score(first.value) == score(second.value):
        both = [el("strong", name_of(method.title)) for method in ranked[:2]]
        return el("p", both[0], " and ", both[1], " reach the same AR, which no other method exceeds.")
    words: list[Child] = [el("strong", name_of(ranked[0].title)), " has the highest AR"]
    if first.low <= second.high:
        words += [", but its interval overlaps with that of ", name_of(ranked[1].title)]
        words.append(": these runs do not tell the two apart.")
    elif all((high := method.estimate("AR").high) is not None and high < first.low for method in ranked[1:]):
        words.append("; its interval lies above that of every other method that learns task after task.")
    else:
        words += ["; its interval lies above that of ", name_of(ranked[1].title), "."]
    return el("p", *words)


def _reading_help(study: Study) -> str:
    origin = (
        f"Small figures: {study.level} over seeds (t distribution), scores cut at 0 and 100"
        if study.has_seeds
        else f"Small figures: {study.level} over the evaluation rows (bootstrap)"
    )
    if study.has_seeds:
        origin += "; for general ability the lowest and highest seed"
    if "last_accuracy" not in [meaning.key for meaning in study.meanings]:
        origin += ". The last accuracy equals AR"
    return (
        f"{origin}. Bold: best of the methods that learn task after task. BWT and forgetting are in points of the "
        "score. Time: computing time of one seed's run, steps shared with other runs counted in full."
    )


def _plots(study: Study) -> list[Html]:
    figures = []
    for meaning in study.meanings:
        if meaning.key not in ("AR", "BWT", "FWT", "forgetting"):
            continue
        dots = []
        for method in study.methods:
            entry = method.estimate(meaning.key)
            if entry.value is None:
                continue
            style = study.in_front.index(method) if method in study.in_front else STYLES - 1
            singles = method.seed_values(meaning.key)
            dots.append(Dot(method.title, entry.value, entry.low, entry.high, singles, style, method.is_reference))
        average = base_average(study)
        rules = [Rule(average, "base model")] if meaning.key == "AR" and average is not None else []
        if meaning.key == "BWT" and any(dot.value for dot in dots):
            rules = [Rule(0.0, "nothing lost")]
        unit = "points" if meaning.unit == "points" else "%"
        spoken = "; ".join(
            f"{dot.label} {score(dot.value)}" + (f" ({interval(dot.low, dot.high)})" if dot.low is not None else "")
            for dot in dots
        )
        figures.append(
            el(
                "figure",
                el("figcaption", el("strong", meaning.title), f" {meaning.arrow} {meaning.direction}"),
                dot_panel(f"{meaning.title} by method", f"{meaning.direction}. {spoken}.", dots, unit, rules),
                class_="panel",
            )
        )
    return figures


def _any_general(study: Study, meaning: Meaning) -> bool:
    return any(method.general(method.finished, meaning.key).value is not None for method in study.methods)
