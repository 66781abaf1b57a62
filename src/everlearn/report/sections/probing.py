"""What a model answers beside what fresh heads on its features get right: where forgetting sits."""

from __future__ import annotations

from everlearn.report.facts.definitions import PROBES
from everlearn.report.facts.probed import Course, courses, names_of, verdict
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Html, el
from everlearn.report.page.numbers import score
from everlearn.report.page.panels import Series, line_panel
from everlearn.report.page.svg import percent_axis
from everlearn.report.sections.blocks import block
from everlearn.report.sections.curves import stage_axis

_HELP = (
    "Probes are fresh heads on the model's features, fitted after each stage on the training rows of all tasks, later "
    "ones included. Where they stay high while what is observed falls, the features still hold what the model no "
    "longer says; where they fall, the features themselves forget."
)


def probing(study: Study) -> Html | None:
    """The section's body; None where nothing was probed."""
    blocks = [
        block(method, study, el("p", verdict(method)) if verdict(method) else None, _panels(method, study))
        for method in study.methods
        if names_of(method) and method.finished
    ]
    return el("div", el("p", _HELP, class_="soft"), *blocks) if blocks else None


def _panels(method: MethodRuns, study: Study) -> Html:
    return el("div", *(_panel(method, study, seen=seen) for seen in (True, False)), class_="panels two")


def _panel(method: MethodRuns, study: Study, *, seen: bool) -> Html:
    what = "tasks seen so far" if seen else "all tasks"
    found = courses(method, study, seen=seen)
    lines = [
        Series(PROBES.get(name, name), [(float(stage), value) for stage, value in course], style)
        for style, (name, course) in enumerate(found.items())
        if any(value is not None for _, value in course)
    ]
    return el(
        "figure",
        el("figcaption", el("strong", f"Mean of {what}"), " ↑ per cent, higher is better"),
        line_panel(
            f"Accuracy observed and probed, mean of {what}",
            "; ".join(f"{PROBES.get(name, name)} {_spoken(course)}" for name, course in found.items()),
            stage_axis(study, 1 if seen else 0),
            percent_axis(),
            lines,
        ),
        class_="panel",
    )


def _spoken(course: Course) -> str:
    return ", ".join(f"{stage if stage else 'base'}: {score(value)}" for stage, value in course if value is not None)
