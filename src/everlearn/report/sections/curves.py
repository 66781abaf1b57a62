"""Learning and forgetting over the stages: one small panel per task, then what all tasks, ability and loss do."""

from __future__ import annotations

import math
from pathlib import Path

from everlearn.report.facts.definitions import MICROTASKS, PERPLEXITY, Meaning, written
from everlearn.report.facts.parsing import form_of, number, rows_of, stands
from everlearn.report.facts.reading import Run
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import mean, score
from everlearn.report.page.panels import Series, key_of, line_panel
from everlearn.report.page.svg import Axis, Rule, log_axis, nice_axis, percent_axis

LOSS_POINTS = 90


def task_curves(study: Study) -> Html | None:
    """Score of each task over the stages, and their mean."""
    shown = [method for method in study.in_front if method.finished]
    if not shown:
        return None
    x = stage_axis(study)
    figures = [_task_panel(task, study, x) for task in study.tasks]
    return el(
        "div",
        el("p", *_key_words(study), class_="soft"),
        el("div", *figures, class_=_grid(len(figures))),
    )


def curves(study: Study) -> Html | None:
    """The section's body: tasks, general ability, training loss."""
    tasks, general, loss = task_curves(study), general_panels(study), loss_panels(study)
    parts: list[Html] = [tasks] if tasks else []
    if general:
        plain = f"{MICROTASKS.title}: {MICROTASKS.plain}. {PERPLEXITY.title}: {PERPLEXITY.plain}."
        parts.append(el("h3", "General ability and training loss" if len(loss) == 1 else "General ability"))
        parts.append(el("p", plain, class_="soft"))
    if general and len(loss) == 1:
        parts.append(el("div", *general, *loss, class_=_grid(len(general) + 1)))
    else:
        if general:
            parts.append(el("div", *general, class_=_grid(len(general))))
        if loss:
            parts += [el("h3", "Training loss"), el("div", *loss, class_=_grid(len(loss)))]
    return el("div", *parts) if parts else None


def general_panels(study: Study) -> list[Html]:
    """General ability over the stages."""
    panels = []
    for meaning in (MICROTASKS, PERPLEXITY):
        lines = []
        for style, method in enumerate(study.in_front):
            entries = [method.general(stage, meaning.key) for stage in range(method.finished + 1)]
            points = [(float(stage), entry.value) for stage, entry in enumerate(entries)]
            if method.is_reference and study.continual:
                points = [(float(study.stage_count), entries[-1].value)]
            if any(value is not None for _, value in points):
                band = [(entry.low, entry.high) for entry in entries] if not study.is_comparison else ()
                lines.append(Series(_end_label(method, points[-1][1], study), points, style, band))
        if not lines:
            continue
        values = [value for line in lines for _, value in line.points if value is not None]
        top = max(values + [high for line in lines for _, high in line.band if high is not None])
        is_wide = meaning is PERPLEXITY and 0 < 20 * min(values) < top
        y = log_axis(min(values), top) if is_wide else nice_axis(0, top)
        scale = "per cent, " if meaning is MICROTASKS else "logarithmic, " if is_wide else ""
        caption = f" {meaning.arrow} {scale}{meaning.direction}"
        panels.append(
            el(
                "figure",
                el("figcaption", el("strong", meaning.title), caption),
                line_panel(f"{meaning.title} over the stages", _spoken(lines, meaning), stage_axis(study), y, lines),
                class_="panel",
            )
        )
    return panels


def loss_panels(study: Study) -> list[Html]:
    """Training loss of each method's first seed, stages one after another."""
    curves = [(style, method, loss_of(method.first)) for style, method in enumerate(study.in_front)]
    losses = [loss for _, _, stages in curves for points in stages.values() for _, loss in points]
    if not losses:
        return []
    y = nice_axis(0, max(losses))
    return [_loss_panel(style, method, stages, y, study) for style, method, stages in curves if stages]


def stage_axis(study: Study, first: int = 0) -> Axis:
    """Stages from the base model (0) or from the first one on."""
    last = max(1, study.stage_count)
    every = math.ceil(last / 12)
    ticks = [(float(stage), str(stage) if stage else "base") for stage in range(first, last + 1, every)]
    return Axis(first, max(last, first + 1), ticks, "stage")


def loss_of(run: Run) -> dict[int, list[tuple[float, float]]]:
    """Loss by stage as (step, loss), thinned by means over equal stretches of steps; phases one after the other."""
    found = {}
    for stage in run.stages:
        points: list[tuple[float, float]] = []
        for path in _histories(run, run.stage_folder(stage.index)):
            before = points[-1][0] if points else 0.0
            with form_of(path):
                pairs = [
                    (number(row["step"]), number(row["loss"])) for row in rows_of(path) if row.get("loss") is not None
                ]
            points += [(before + step, loss) for step, loss in pairs if step is not None and loss is not None]
        if points:
            found[stage.index] = thinned(points, LOSS_POINTS)
    return found


def _histories(run: Run, folder: Path) -> list[Path]:
    """What the phases of a stage have kept of their steps, in the order in which they were trained."""
    steps = dict.fromkeys(step.kind for step in run.steps if step.stage == folder.name)
    return [path for kind in steps if stands(path := folder / kind / "history.jsonl")]


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of a stretch."""
    if len(points) <= most:
        return points
    kept = []
    for place in range(most):
        part = points[place * len(points) // most : (place + 1) * len(points) // most]
        kept.append((mean([at for at, _ in part]) or 0.0, mean([loss for _, loss in part]) or 0.0))
    return kept


def _task_panel(task: str, study: Study, x: Axis) -> Html:
    learnt = study.learnt_at(task)
    lines = []
    for style, method in enumerate(study.in_front):
        if method.is_reference and study.continual:
            lines += _level(method, style, method.own_score(task), x)
            continue
        course = method.course(task)
        points = [(float(stage), value) for stage, value in enumerate(course)]
        if all(value is None for value in course):
            continue
        entries = [method.score(stage, task) for stage in range(method.finished + 1)]
        band = [(entry.low, entry.high) for entry in entries] if not study.is_comparison else ()
        lines.append(Series(_end_label(method, course[-1], study), points, style, band))
    if not study.is_comparison:
        lines = [*_others(task, study), *lines]
    caption = f" learnt at stage {learnt}" if learnt else ""
    return el(
        "figure",
        el("figcaption", el("strong", name_of(task)), caption),
        line_panel(
            f"Score on {task} over the stages, in per cent",
            _spoken([line for line in lines if not line.quiet]),
            x,
            percent_axis(),
            lines,
            shade_until=learnt - 0.5 if learnt and study.stage_count > 1 else None,
        ),
        class_="panel",
    )


def _level(method: MethodRuns, style: int, value: float | None, x: Axis) -> list[Series]:
    """A reference as a level line; nothing where it is not measured."""
    points = [(x.low, value), (x.high, value)]
    return [] if value is None else [Series(method.title, points, style, markers=False, thin=True)]


def _others(task: str, study: Study) -> list[Series]:
    """The other tasks of a single run, as grey context."""
    method = study.methods[0]
    return [
        Series("", [(float(stage), value) for stage, value in enumerate(method.course(other))], 0, quiet=True)
        for other in study.tasks
        if other != task
    ]


def average_curve(study: Study) -> Html | None:
    """Mean over the tasks seen so far, stage by stage."""
    if not study.continual:
        return None
    lines, x = [], stage_axis(study, 1)
    for style, method in enumerate(study.in_front):
        if method.is_reference:
            lines += _level(method, style, method.estimate("AR").value, x)
            continue
        points: list[tuple[float, float | None]] = []
        seen: list[str] = []
        for stage in method.first.stages[: method.finished]:
            seen += stage.tasks
            values = [method.score(stage.index, task).value for task in seen]
            known = [value for value in values if value is not None]
            points.append((float(stage.index), mean(known) if len(known) == len(values) else None))
        if points:
            lines.append(Series(_end_label(method, points[-1][1], study), points, style))
    if not any(len(line.points) > 1 for line in lines if not line.thin):
        return None
    return el(
        "figure",
        el("figcaption", el("strong", "Mean of the tasks seen so far")),
        line_panel("Mean score of the tasks seen so far", _spoken(lines), x, percent_axis(), lines),
        class_="panel",
    )


def _loss_panel(
    style: int, method: MethodRuns, stages: dict[int, list[tuple[float, float]]], y: Axis, study: Study
) -> Html:
    points: list[tuple[float, float | None]] = []
    rules, ticks, start = [], [], 0.0
    for index, part in stages.items():
        points += [(start + step, loss) for step, loss in part]
        length = part[-1][0]
        ticks.append((start + length / 2, str(index) if len(stages) <= 12 or index % 5 == 0 else ""))
        start += length
        rules.append(Rule(start, ""))
        points.append((start, None))
    seed = f", seed {method.first.seed}" if len(method.runs) > 1 else ""
    last = {index: part[-1][1] for index, part in stages.items()}
    spoken = "; ".join(f"stage {index} ends at {loss:.3f}" for index, loss in last.items())
    return el(
        "figure",
        el("figcaption", el("strong", name_of(method.title) if len(study.methods) > 1 else "Training loss"), seed),
        line_panel(
            f"Training loss of {method.title}",
            spoken,
            Axis(0, start, ticks, "stage (steps in proportion)"),
            y,
            [Series("", points, style, markers=False)],
            rules[:-1],
        ),
        class_="panel",
    )


def _grid(panels: int) -> str:
    """Two or four panels stand in two columns, so that none is left alone."""
    return "panels two" if panels in (2, 4) else "panels"


def _end_label(method: MethodRuns, value: float | None, study: Study) -> str:
    return method.title if study.is_comparison else score(value)


def _spoken(lines: list[Series], meaning: Meaning | None = None) -> str:
    parts = []
    for line in lines:
        values = ", ".join(
            f"{'base' if at == 0 else f'{at:g}'}: {written(meaning, value) if meaning else score(value)}"
            for at, value in line.points
            if value is not None
        )
        parts.append(f"{line.label} {values}")
    return "; ".join(parts)


def _key_words(study: Study) -> list[Child]:
    words: list[Child] = []
    if study.is_comparison:
        for style, method in enumerate(study.in_front):
            words.append(el("span", key_of(style), " ", name_of(method.title), class_="keyed"))
        if study.is_crowded:
            words.append(" Drawn is the best of each kind, by its average at the end; the tables have all.")
        for method in study.in_front:
            if method.is_reference and study.continual:
                words.append(f" The level line is {method.title} ({method.remark}).")
    else:
        words.append("Band: interval; grey lines: the other tasks.")
    words.append(" Shaded: before the task's turn.")
    return words
