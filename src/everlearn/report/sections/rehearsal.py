"""What was rehearsed: the mix of each stage, and for synthetic rows the way from demonstrations to rehearsed rows."""

from __future__ import annotations

from collections import Counter

from everlearn.report.facts.parsing import rows_of
from everlearn.report.facts.reading import Run, Stage
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.facts.synthetic import Fate, Synthesis, read_synthesis, reason_in_words, sample
from everlearn.report.page.markup import Child, Html, el, name_of, shown
from everlearn.report.page.numbers import NONE, count, percent, plural
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.blocks import block

SHOWN_INSTANCES = 30
SHOWN_DEMONSTRATIONS = 20
MOST_LABELS = 12
FATES = {"rehearsed": "rehearsed", "selected": "selected", "spare": "not needed", "dropped": "dropped"}


def rehearsal(study: Study) -> Html | None:
    """The section's body; None where nothing was rehearsed."""
    parts = [part for method in study.methods if (part := _of_method(method, study)) is not None]
    return el("div", *parts) if parts else None


def _of_method(method: MethodRuns, study: Study) -> Html | None:
    run = method.first
    mix = _mix(run)
    syntheses: list[Html] = []
    heading = "h4" if study.is_comparison else "h3"
    for stage in run.stages:
        found = read_synthesis(run.stage_folder(stage.index) / "synthesis")
        if found:
            syntheses.append(_of_stage(stage, found, run, heading, is_open=not syntheses))
    if mix is None and not syntheses:
        return None
    return block(
        method,
        study,
        mix,
        *syntheses,
        remark=f" (seed {run.seed}; the other seeds' folders hold theirs)",
    )


def _mix(run: Run) -> Html | None:
    """Which rows each stage was trained on."""
    facts = {task.name: task.train_rows for task in run.tasks}
    rows, any_rehearsed = [], False
    for stage in run.stages:
        path = run.stage_folder(stage.index) / "rehearsal.jsonl"
        if not path.exists():
            continue
        found = Counter((str(row.get("task", "")), str(row.get("origin", "real"))) for row in rows_of(path))
        any_rehearsed = any_rehearsed or bool(found)
        new = [facts.get(task) for task in stage.tasks]
        parts: list[Child] = []
        for place, ((task, origin), number) in enumerate(found.items()):
            parts += ["; " if place else "", name_of(task), f" {count(number)} {origin}"]
        rows.append(
            el(
                "tr",
                el("th", name_of(stage.name), scope="row"),
                el("td", count(sum(value for value in new if value is not None)) if any(new) else NONE, class_="num"),
                el("td", count(sum(found.values())), class_="num"),
                el("td", *(parts or [NONE])),
            )
        )
    if not any_rehearsed:
        return None
    heads = ("Stage", "New rows", "Rehearsed", "Of which task")
    return scrolling_table("Rows of each stage", heads, rows, css="numbers mix")


def _of_stage(stage: Stage, found: Synthesis, run: Run, heading: str, *, is_open: bool) -> Html:
    task = ", ".join(stage.tasks)
    made = next((level.count for level in reversed(found.levels)), 0)
    asked = f" of {count(found.asked)} asked for" if found.asked and found.asked != made else ""
    return el(
        "details",
        el(
            "summary",
            "Synthesized for ",
            el("strong", name_of(task)),
            f" after stage {stage.index}: {plural(made, 'row')}{asked}",
        ),
        _funnel(found),
        _labels(task, found, run),
        el(
            "div",
            _demonstrations(found, heading),
            _instances(found, heading, f"{run.folder.name}/stages/{stage.name}/synthesis"),
            class_="beside",
        ),
        class_="synthesis",
        open=is_open,
    )


def _funnel(found: Synthesis) -> Html:
    most = max((level.count for level in found.levels), default=0) or 1
    rows = []
    for level in found.levels:
        dropped = "; ".join(
            f"{count(number)} {reason_in_words(reason)}"
            for reason, number in sorted(level.dropped.items(), key=lambda item: -item[1])
            if number
        )
        rows.append(
            el(
                "tr",
                el("th", level.title, el("span", dropped, class_="dropped") if dropped else None, scope="row"),
                el("td", count(level.count), class_="num"),
                el("td", _bar(level.count / most), class_="bars"),
            )
        )
    return el(
        "table",
        el("caption", "From raw texts to rehearsed rows"),
        el("tbody", *rows),
        class_="funnel",
    )


def _bar(share: float, css: str = "bar") -> Html | None:
    return None if share <= 0 else el("span", class_=css, style=f"--share:{min(1.0, max(0.0, share)):.4f}")


def _labels(task: str, found: Synthesis, run: Run) -> Html | None:
    """How often each label occurs, where the task's answers are a small set."""
    gold = [
        str(row.get("gold", "")) for row in rows_of(run.stage_folder(0) / "predictions" / task / "predictions.jsonl")
    ]
    labels = [label for label, _ in Counter(gold).most_common()]
    if not 2 <= len(labels) <= MOST_LABELS or len(labels) * 3 > len(gold):
        return None
    columns = [("held-out rows", gold), ("base model's answers", found.kept_answers)]
    columns.append(("answers rehearsed", found.refined_answers))
    columns = [(title, answers) for title, answers in columns if answers]
    rows = []
    for label in [*labels, None]:
        cells: list[Child] = [el("th", name_of(label) if label is not None else "anything else", scope="row")]
        for _, answers in columns:
            share = sum(
                answer.strip() == label if label is not None else answer.strip() not in labels for answer in answers
            )
            cells.append(
                el("td", percent(100 * share / len(answers)), _bar(share / len(answers), "bar small"), class_="num")
            )
        rows.append(el("tr", *cells))
    return scrolling_table(
        "Distribution of labels",
        ["Answer", *(title for title, _ in columns)],
        rows,
        css="numbers labels",
        caption="How often each label occurs",
    )


def _demonstrations(found: Synthesis, heading: str) -> Html | None:
    rows = found.demonstrations[:SHOWN_DEMONSTRATIONS]
    if not rows:
        return None
    more = len(found.demonstrations) - len(rows)
    return el(
        "div",
        el(heading, f"Demonstrations shown ({count(len(found.demonstrations))}, real)"),
        el("div", shown(found.instruction, 400), class_="instruction") if found.instruction else None,
        el(
            "ul",
            *(
                el(
                    "li",
                    shown(str(row.get("instruction", "")), 240) if not found.instruction else None,
                    shown(str(row.get("input", "")), 240) if row.get("input") or found.instruction else None,
                    el(
                        "div", el("span", "→ ", class_="soft"), shown(str(row.get("output", "")), 160), class_="answer"
                    ),
                )
                for row in rows
            ),
            class_="rows",
        ),
        el("p", f"and {plural(more, 'more')}", class_="soft") if more > 0 else None,
        class_="demonstrations",
    )


def _instances(found: Synthesis, heading: str, place: str) -> Html:
    chosen = sample(found.fates, SHOWN_INSTANCES)
    totals = Counter(fate.kind for fate in found.fates)
    told = ", ".join(f"{count(totals[kind])} {title}" for kind, title in FATES.items() if totals[kind])
    return el(
        "div",
        el(heading, f"Synthetic instances ({len(chosen)} of {count(len(found.fates))} shown: {told})"),
        el("ul", *(_instance(fate) for fate in chosen), class_="rows"),
        el("p", "All of them: ", el("code", place), class_="soft") if len(chosen) < len(found.fates) else None,
        class_="instances",
    )


def _instance(fate: Fate) -> Html:
    answers: list[Child] = []
    if fate.answer is not None:
        answers.append(el("div", el("span", "base ", class_="soft"), shown(fate.answer, 160), class_="answer"))
    if fate.refined is not None:
        answers.append(el("div", el("span", "refined ", class_="soft"), shown(fate.refined, 160), class_="answer"))
    label = f"dropped: {fate.reason}" if fate.kind == "dropped" else fate.reason or FATES[fate.kind]
    mark = {"rehearsed": "✓ ", "selected": "✓ ", "spare": "○ ", "dropped": "✕ "}[fate.kind]
    return el("li", shown(fate.text, 240), *answers, el("p", mark + label, class_="fate"), class_=fate.kind)
