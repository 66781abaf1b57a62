"""What each method cost beyond plain training: time by name, tokens written, disk and memory.

Nothing of it is told by a method: the engine times what acts while a stage trains, the store what each step takes. The
backward pass of a loss term is one with that of the rows, and so is counted as training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everlearn.files import read_json
from everlearn.report.facts.forms import SummaryForm, in_form
from everlearn.report.facts.parsing import stands
from everlearn.report.facts.reading import Run, Step
from everlearn.report.facts.study import Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE, count, duration, mean
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.provenance import KINDS, size

_OF_EVERY_RUN = ("predictions", "answers", "general", "benchmarks", "judge", "data")
"""Kinds of steps that measure or keep what there is, whatever the method."""
_EXPLANATION = (
    "Training is all of it, rehearsed rows included; acting is the part of it that the method's own terms, gradients "
    "and averages took (the backward pass of a loss term not told apart). Steps of its own come between trainings. "
    "Disk is what trainings and these steps keep. Peak memory is of the whole process, or of the GPU. Measuring is "
    "left out. Means over seeds."
)
_PLANNED = (
    "Planned when the run began, with real rows of a task in the place of those that models had yet to write, and "
    "nothing for what a method rehearses where that could not be told. Generated are answers, micro-tasks and what "
    "the method has written; how much a model writes was not known, only how much it may."
)


def cost(study: Study) -> Html | None:
    """The section's body: a row for each method, of a single run for each stage; None where nothing is known."""
    rows: list[tuple[Child, list[tuple[Run, Sequence[Step]]]]]
    if study.is_comparison:
        rows = [(name_of(method.title), [(run, run.steps) for run in method.runs]) for method in study.methods]
    else:
        run = study.methods[0].first
        names = [stage.name for stage in run.stages]
        rows = [(name_of(name), [(run, [step for step in run.steps if step.stage == name])]) for name in names]
    rows = [(head, runs) for head, runs in rows if any(step.is_training for _, steps in runs for step in steps)]
    if not rows:
        return None
    first = "Method" if study.is_comparison else "Stage"
    heads = (first, "Training", "of it acting", "Steps of its own", "Generated tokens", "Disk", "Peak memory")
    body = [_row(head, [_Cost(run, steps) for run, steps in runs]) for head, runs in rows]
    table = scrolling_table("Cost", heads, body, css="numbers")
    return el("div", el("p", _EXPLANATION, class_="soft"), table, _planned(study))


def _planned(study: Study) -> Html | None:
    """What was planned before anything ran, and what was spent on it, side by side; None where there was no plan."""
    if study.is_comparison:
        rows = [(method.title, [(run, None) for run in method.runs]) for method in study.methods]
    else:
        run = study.methods[0].first
        names = dict.fromkeys(part.stage for part in run.planned)
        rows = [(name, [(run, name)]) for name in names]  # type: ignore[list-item]
    if not all(run.planned for _, runs in rows for run, _ in runs) or not rows:
        return None
    body = []
    for head, runs in rows:
        pairs = [_pairs(run, stage) for run, stage in runs]
        means = [round(mean([float(one[at]) for one in pairs]) or 0) for at in range(6)]
        cells = (el("td", count(value) if value else NONE, class_="num") for value in means)
        body.append(el("tr", el("th", name_of(head), scope="row"), *cells))
    first = "Method" if study.is_comparison else "Stage"
    heads = (first, "Steps planned", "spent", "Trained tokens planned", "spent", "Generated at most", "spent")
    return el(
        "div",
        el("h3", "Planned and spent"),
        el("p", _PLANNED, class_="soft"),
        scrolling_table("Planned and spent", heads, body, css="numbers"),
    )


def _pairs(run: Run, stage: str | None) -> list[int]:
    """Steps, trained and generated tokens of a run, or a stage of it: planned and spent."""
    planned = [part for part in run.planned if stage in (None, part.stage)]
    steps = [step for step in run.steps if stage in (None, step.stage)]
    spent = [_summary(run, step) for step in steps if step.is_training]
    return [
        sum(part.steps for part in planned),
        sum(one.steps for one in spent),
        sum(part.trained_tokens for part in planned),
        sum(one.tokens for one in spent),
        sum(part.most_written_tokens for part in planned),
        sum(step.generated_tokens for step in steps),
    ]


class _Cost:
    """What one run, or a stage of it, has cost.

    Args:
        run: Whose steps they are.
        steps: To be counted.
    """

    def __init__(self, run: Run, steps: Sequence[Step]) -> None:
        self.training = sum(step.seconds for step in steps if step.is_training)
        self.acting: dict[str, float] = {}
        self.own: dict[str, float] = {}
        self.tokens = self.size_bytes = 0
        for step in steps:
            if step.is_training:
                for name, seconds in _summary(run, step).influence_seconds.items():
                    self.acting[name] = self.acting.get(name, 0.0) + seconds
            elif step.kind not in _OF_EVERY_RUN:
                kind = KINDS.get(step.kind, step.kind)
                self.own[kind] = self.own.get(kind, 0.0) + step.seconds
            if step.kind not in _OF_EVERY_RUN:
                self.tokens += step.generated_tokens
                self.size_bytes += step.size_bytes
        self.peak = max((step.peak_memory_bytes for step in steps if step.kind not in _OF_EVERY_RUN), default=0)


def _summary(run: Run, step: Step) -> SummaryForm:
    path = run.folder / step.place / "summary.json"
    return in_form(path, read_json(path), SummaryForm) if stands(path) else SummaryForm()


def _row(head: Child, costs: Sequence[_Cost]) -> Html:
    def over(values: Sequence[float]) -> float:
        return mean([float(value) for value in values]) or 0.0

    peak = max(one.peak for one in costs)
    tokens, disk = (over([getattr(one, key) for one in costs]) for key in ("tokens", "size_bytes"))
    return el(
        "tr",
        el("th", head, scope="row"),
        el("td", duration(over([one.training for one in costs])), class_="num"),
        _by_name([one.acting for one in costs]),
        _by_name([one.own for one in costs]),
        el("td", count(round(tokens)) if tokens else NONE, class_="num"),
        el("td", size(round(disk)), class_="num"),
        el("td", size(peak) if peak else NONE, class_="num"),
    )


def _by_name(found: Sequence[Mapping[str, float]]) -> Html:
    """The sum, and beneath it each name's part."""
    names = dict.fromkeys(name for one in found for name in one)
    means = {name: sum(one.get(name, 0.0) for one in found) / len(found) for name in names}
    if not means:
        return el("td", NONE, class_="num")
    parts: list[Child] = [
        part for name, value in means.items() for part in (", ", name_of(name), f" {duration(value)}")
    ]
    return el("td", duration(sum(means.values())), el("span", *parts[1:], class_="tag"), class_="num")
