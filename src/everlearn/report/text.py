"""The tables of a run or comparison for the terminal: matrix, metrics with intervals, methods side by side.

Everything stands in plain columns that also read well in a log: the score just after a task was learnt is in
brackets, the best method in bold, and the direction of good in the head. Colours (where the terminal has them) only
repeat what the figures say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.report.facts.benchmarked import headlines, stages_asked, told, value
from everlearn.report.facts.definitions import (
    MICROTASKS,
    PERPLEXITY,
    PROBES,
    Meaning,
    metric_title,
    metric_word,
    written,
)
from everlearn.report.facts.empty import doubt, empty_answers
from everlearn.report.facts.kinds import grouped
from everlearn.report.facts.probed import courses, names_of, verdict
from everlearn.report.facts.reading import Estimate
from everlearn.report.facts.study import MethodRuns, Study, read_study
from everlearn.report.page.numbers import NONE, duration, interval, score
from everlearn.report.sections.answered import scenario
from everlearn.report.sections.headline import best_of, unfinished
from everlearn.report.sections.judged import judge_of, rates
from everlearn.visible import visible

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    from everlearn.report.page.side_by_side import SideBySide


def print_tables(folder: Path, console: Console | None = None) -> None:
    """Prints `matrix_table` on the standard output.

    Raises:
        RunError: the folder is no run folder, or a file in it is corrupt.
    """
    from rich.console import Console

    (console or Console()).print(matrix_table(folder))


def matrix_table(folder: Path) -> Group:
    """The tables as one rich renderable.

    Args:
        folder: A run or comparison folder, finished or not.

    Returns:
        Matrices (one per method), then the metrics of a run or the comparison of methods.

    Raises:
        RunError: the folder is no run folder, or a file in it is corrupt.
    """
    from rich.console import Group

    study = read_study(folder)
    parts: list[Text | Table | SideBySide] = []
    what = unfinished(study)
    if what is not None:
        parts.append(_plain(f"Unfinished: {what}. Shown is what is there so far.\n"))
    if known := scenario(study):
        parts.append(_plain(f"{known[0]}: {known[1]}.\n"))
    for method in study.in_front:
        if method.first.matrix:
            parts += [_heading(method, study), _matrix(method, study)]
            told = filter(None, (empty_answers(method, study), doubt(method, study)))
            parts += [_plain(f"{sentence}\n") for sentence in told]
    if any(method.finished for method in study.methods):
        parts.append(_plain("In brackets: just after the task was learnt.\n"))
    for method in study.in_front:
        parts += _probing(method, study)
    if study.is_crowded:
        parts.append(_plain("Matrices: of each kind the method with the best average; report.html has all.\n"))
        parts += [_plain(f"Methods by kind, without their intervals ({study.level}: report.html)"), _by_kind(study)]
    elif len(study.methods) > 1:
        of = "over seeds" if study.has_seeds else "over the evaluation rows"
        parts += [_plain(f"Methods, with the {study.level} {of} below each value"), _comparison(study)]
    elif study.methods:
        parts.append(_metrics(study.methods[0], study))
    return Group(*parts)


def _heading(method: MethodRuns, study: Study) -> Text:
    heading = _plain(method.title)
    heading.stylize("bold")
    bound = f" ({method.remark})" if method.remark else ""
    seeds = f", mean of {len(method.runs)} seeds" if len(method.runs) > 1 else ""
    what = metric_title(study.shared_metric) or "score"
    return heading.append(f"{bound}: {what} after each stage{seeds}, in %, higher is better", style="not bold")


def _matrix(method: MethodRuns, study: Study) -> SideBySide:
    from everlearn.report.page.side_by_side import Column, SideBySide

    measured = any(method.score(0, task).value is not None for task in study.tasks)
    stages = range(0 if measured else 1, method.finished + 1)
    names = [_plain(method.first.stages[stage - 1].name if stage else "base model") for stage in stages]
    columns = []
    for task in study.tasks:
        learnt = [bool(stage) and task in method.first.stages[stage - 1].tasks for stage in stages]
        values = [method.score(stage, task).value for stage in stages]
        metric = "" if study.shared_metric else metric_word(study.metric_of(task))
        head = _plain(task).append(f"\n{visible(metric)}" if metric else "", style="dim")
        columns.append(Column(head, [_cell(*pair) for pair in zip(values, learnt, strict=True)]))
    return SideBySide(_plain("after"), names, columns)


def _probing(method: MethodRuns, study: Study) -> list[Text | Table | SideBySide]:
    """What probes on its features get right beside what it answers; nothing where nothing was probed."""
    from everlearn.report.page.side_by_side import Column, SideBySide

    if not (names_of(method) and method.finished):
        return []
    parts: list[Text | Table | SideBySide] = []
    for seen in (True, False):
        stages = range(1 if seen else 0, method.finished + 1)
        heading = _plain(method.title)
        heading.stylize("bold")
        what = "the tasks seen so far" if seen else "all tasks"
        heading.append(f": observed and probed after each stage, mean of {what}, in %", style="not bold")
        columns = []
        for name, course in courses(method, study, seen=seen).items():
            known = dict(course)
            head = _plain(PROBES.get(name, name).replace(" ", "\n"))
            columns.append(Column(head, [_cell(known.get(stage), False) for stage in stages]))
        names = [_plain(method.first.stages[stage - 1].name if stage else "base model") for stage in stages]
        parts += [heading, SideBySide(_plain("after"), names, columns)]
    return [*parts, _plain(f"{verdict(method)}\n")]


def _cell(value: float | None, just_learnt: bool) -> Text:
    from rich.text import Text

    if value is None:
        return Text(NONE, style="dim")
    return Text(f"[{score(value)}]", style="bold") if just_learnt else Text(score(value))


def _metrics(method: MethodRuns, study: Study) -> Table:
    from everlearn.report.page.side_by_side import plain_table

    table = plain_table()
    for head in ("measure", "value", study.level, "better"):
        table.add_column(head, justify="right" if head in ("value", study.level) else "left", overflow="fold")
    rows: list[tuple[Meaning, Estimate]] = [(meaning, method.estimate(meaning.key)) for meaning in study.meanings]
    rows += [(meaning, method.general(method.finished, meaning.key)) for meaning in (MICROTASKS, PERPLEXITY)]
    for meaning, entry in rows:
        if entry.value is not None:
            better = "higher" if meaning.rises else "lower"
            table.add_row(
                _name(meaning), _plain(written(meaning, entry.value)), interval(entry.low, entry.high), better
            )
    for one in headlines([method]):
        before, now = value(method, 0, one), value(method, stages_asked(method)[-1], one)
        course = told(now) if stages_asked(method) == [0] else f"{told(before)} to {told(now)}"
        table.add_row(_plain(one.title), course, "", "higher" if one.rises else "lower")
    if form := judge_of(method):
        for what, rate in zip(("win rate", "win rate controlled for length"), rates(method), strict=True):
            table.add_row(_plain(f"{what} (judge {form.judge})"), rate, "", "higher")
    table.add_row("Computing time", duration(method.seconds.value), "", "lower")
    return table


def _comparison(study: Study) -> SideBySide:
    from everlearn.report.page.side_by_side import Column, SideBySide

    rows: list[tuple[str, list[Text]]] = []
    for meaning in study.meanings:
        best = best_of(study, meaning)
        cells = [_estimate(meaning, method.estimate(meaning.key), method in best) for method in study.methods]
        rows.append((f"{meaning.short} {meaning.arrow}", cells))
    for meaning in (MICROTASKS, PERPLEXITY):
        entries = [method.general(method.finished, meaning.key) for method in study.methods]
        if any(entry.value is not None for entry in entries):
            cells = [_estimate(meaning, entry, False) for entry in entries]
            rows.append((f"{meaning.short} {meaning.arrow}", cells))
            break
    for one in headlines(study.methods):
        cells = [_plain(told(value(method, (stages_asked(method) or [0])[-1], one))) for method in study.methods]
        rows.append((f"{one.title} {one.arrow}", cells))
    if judges := {form.judge for method in study.methods if (form := judge_of(method))}:
        told_of = [_plain(rates(method)[1] if judge_of(method) else NONE) for method in study.methods]
        rows.append((f"win rate controlled for length (judge {', '.join(sorted(judges))}) ↑", told_of))
    rows.append(("Time ↓", [_plain(duration(method.seconds.value)) for method in study.methods]))
    columns = []
    for place, method in enumerate(study.methods):
        remarks = [remark for remark in (method.remark.split(":")[0], method.shortfall) if remark]
        head = _plain(method.title).append("".join(f"\n{remark}" for remark in remarks), style="not bold dim")
        columns.append(Column(head, [cells[place] for _, cells in rows]))
    return SideBySide(_plain(""), [_plain(name) for name, _ in rows], columns)


def _by_kind(study: Study) -> Table:
    """One row a method, for many of them, with the numbers that decide."""
    from everlearn.report.page.side_by_side import plain_table

    table = plain_table()
    shown = [meaning for meaning in study.meanings if meaning.key in ("AR", "BWT")]
    general = [m for m in (MICROTASKS, PERPLEXITY) if any(x.general(x.finished, m.key).value for x in study.methods)]
    table.add_column("", no_wrap=True)
    for head in (*(f"{meaning.short} {meaning.arrow}" for meaning in (*shown, *general[:1])), "Time ↓"):
        table.add_column(head, justify="right", overflow="fold")
    best = {meaning.key: best_of(study, meaning) for meaning in shown}
    for kind, methods in grouped(study.methods).items():
        table.add_row(_plain(kind), style="bold")
        for method in methods:
            known = [(meaning, Estimate(method.estimate(meaning.key).value)) for meaning in shown]
            cells = [_estimate(meaning, entry, method in best[meaning.key]) for meaning, entry in known]
            cells += [_plain(written(m, method.general(method.finished, m.key).value)) for m in general[:1]]
            table.add_row(_plain(f"  {method.title}"), *cells, _plain(duration(method.seconds.value)))
    return table


def _estimate(meaning: Meaning, entry: Estimate, is_best: bool) -> Text:
    from rich.text import Text

    text = Text(written(meaning, entry.value), style="bold" if is_best else "")
    ends = interval(entry.low, entry.high)
    return text.append(f"\n{ends}", style="not bold dim") if ends else text


def _name(meaning: Meaning) -> str:
    return f"{meaning.title} ({meaning.short})" if meaning.short.isupper() else meaning.title


def _plain(text: str) -> Text:
    """Text from data: no markup, no control characters."""
    from rich.text import Text

    return Text(visible(text))
