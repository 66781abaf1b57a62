"""The key numbers as tiles, each with its interval and what it says, and the legend with all formulas."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.report.facts.definitions import MICROTASKS, PERPLEXITY, Meaning, written
from everlearn.report.facts.reading import Estimate
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import duration, interval, plural
from everlearn.report.sections.headline import ranking

Found = Sequence[tuple[MethodRuns, Estimate]]


def tiles(study: Study) -> Html:
    """The key numbers; in a comparison, of the best and the worst continual method."""
    ranked = ranking(study) or list(study.methods[:1])
    shown = [ranked[0], ranked[-1]] if len(ranked) > 1 else ranked[:1]
    boxes = []
    for meaning in study.meanings:
        if meaning.key == "FWT_over_base":  # in the table; a tile of its own would say little more than FWT
            continue
        found = [(method, method.estimate(meaning.key)) for method in shown]
        if any(entry.value is not None for _, entry in found):
            boxes.append(_tile(meaning, found, study))
    for meaning in (MICROTASKS, PERPLEXITY):
        found = [(method, method.general(method.finished, meaning.key)) for method in shown]
        if all(entry.value is not None for _, entry in found):
            before = shown[0].general(0, meaning.key).value
            note = (
                f"; {written(meaning, before)} before any training" if before is not None and shown[0].finished else ""
            )
            boxes.append(_tile(meaning, found, study, note))
    if any(method.seconds.value for method in shown):
        boxes.append(_time_tile(shown, study))
    return el("ul", *boxes, class_="tiles")


def legend(study: Study) -> Html:
    """All definitions with their formulas; folded on a screen, open on paper."""
    given = study.methods[0].first.definitions if study.methods else {}
    entries: list[Child] = []
    for meaning in (*study.meanings, MICROTASKS, PERPLEXITY):
        title = f"{meaning.title} ({meaning.short})" if meaning.short.isupper() else meaning.title
        direction = el("span", f"{meaning.arrow} {meaning.direction}", class_="soft")
        entries.append(el("dt", title, " ", direction, id=f"is-{meaning.key}"))
        entries.append(el("dd", given.get(meaning.key) or f"{_sentence(meaning.plain)} {meaning.formula}."))
    return el(
        "details",
        el("summary", "How these numbers are computed"),
        el(
            "p", "a(i, j) is the score on task j after stage i, in per cent; T is the number of stages.", class_="soft"
        ),
        el("dl", *entries, class_="legend"),
        class_="definitions",
    )


def direction_of(meaning: Meaning) -> Html:
    """An arrow that says which way is better, also to those who cannot see it."""
    return el("span", meaning.arrow, class_="arrow", title=meaning.direction, role="img", aria_label=meaning.direction)


def _tile(meaning: Meaning, found: Found, study: Study, note: str = "") -> Html:
    values = [
        _value(written(meaning, entry.value), " points" if meaning.unit == "points" else "", method, entry, study)
        for method, entry in found
    ]
    return el(
        "li",
        el("p", el("a", meaning.title, href=f"#is-{meaning.key}"), " ", direction_of(meaning), class_="name"),
        *values,
        el("p", _sentence(meaning.plain + note), class_="plain"),
        class_="tile",
    )


def _value(number: str, unit: str, method: MethodRuns, entry: Estimate, study: Study) -> Html:
    ends = interval(entry.low, entry.high)
    if ends:
        ends = f"{study.level} {ends}" if len(method.runs) == 1 else f"{plural(len(method.runs), 'seed')}, {ends}"
    who: list[Child] = [el("strong", name_of(method.title)), "  " if ends else ""] if study.is_comparison else []
    return el(
        "div",
        el("div", el("span", number, class_="number"), el("span", unit, class_="unit") if unit else None),
        el("div", *who, ends or None, class_="interval"),
        class_="value",
    )


def _time_tile(shown: Sequence[MethodRuns], study: Study) -> Html:
    values = []
    for method in shown:
        who: list[Child] = [el("strong", name_of(method.title))] if study.is_comparison else []
        number = el("div", el("span", duration(method.seconds.value), class_="number"))
        values.append(el("div", number, el("div", *who, class_="interval"), class_="value"))
    plain = "Of one run, all steps; those found in the cache count with the time they first took."
    return el("li", el("p", "Computing time", class_="name"), *values, el("p", plain, class_="plain"), class_="tile")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
