"""Instances once right and now wrong: question, gold answer, the old answer and the new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everlearn.report.facts.definitions import RIGHT_OR_WRONG, metric_word
from everlearn.report.facts.parsing import Row, form_of, number, rows_of
from everlearn.report.facts.reading import Run
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Html, el, name_of, shown
from everlearn.report.page.numbers import count, in_words, plural

SHOWN_PER_TASK = 20
GRADED_RIGHT = 50.0  # chosen here: at least half of a graded score counts as right in this section
KINDS = (
    ("kept", "kept", "right when just learnt, right now"),
    ("gained", "learnt later", "wrong when just learnt, right now"),
    ("forgotten", "forgotten", "right after some stage since it was learnt, wrong now"),
    ("never", "never right", "wrong after every stage since"),
)


@dataclass(frozen=True, slots=True)
class Lost:
    """One forgotten instance."""

    row: Row
    old_answer: str
    old_stage: int
    wrong_since: int


@dataclass(frozen=True, slots=True)
class TaskMemory:
    """What has become of a task's evaluation rows since it was learnt."""

    task: str
    counts: dict[str, int]
    lost: tuple[Lost, ...]


def memory_of(run: Run) -> list[TaskMemory]:
    """Follows every evaluation row of each earlier task from its own stage to the last.

    Raises:
        RunError: a prediction file is corrupt.
    """
    last = run.finished
    metrics = {task.name: task.metric for task in run.tasks}
    return [
        memory
        for stage in run.stages
        if stage.index < last
        for task in stage.tasks
        if (memory := _memory_of_task(run, task, metrics.get(task, ""), stage.index, last)) is not None
    ]


def forgotten(study: Study) -> Html | None:
    """The section's body; None before a second stage is measured."""
    found = [(method, memory_of(method.first)) for method in study.continual if method.finished > 1]
    found = [(method, memory) for method, memory in found if memory]
    if not found:
        return None
    most = SHOWN_PER_TASK if len(found) == 1 else max(6, SHOWN_PER_TASK // len(found))
    return el(
        "div",
        el("p", *_key(study), class_="soft"),
        _balance([(method, memory) for method, memory in found if method in study.in_front], study),
        *(_examples(method, memory, most, study) for method, memory in found),
    )


def _memory_of_task(run: Run, task: str, metric: str, first: int, last: int) -> TaskMemory | None:
    courses: dict[str, list[tuple[int, bool, Row]]] = {}
    for stage in range(first, last + 1):
        path = run.stage_folder(stage) / "predictions" / task / "predictions.jsonl"
        with form_of(path):
            for place, row in enumerate(rows_of(path)):
                courses.setdefault(str(row.get("id") or place), []).append((stage, _is_right(row, metric), row))
    counts = dict.fromkeys((kind for kind, _, _ in KINDS), 0)
    lost = []
    for course in courses.values():
        if course[0][0] != first or course[-1][0] != last:
            continue
        kind = _kind(course)
        counts[kind] += 1
        if kind == "forgotten":
            lost.append(_lost(course))
    return TaskMemory(task, counts, tuple(lost)) if any(counts.values()) else None


def _kind(course: Sequence[tuple[int, bool, Row]]) -> str:
    if course[-1][1]:
        return "kept" if course[0][1] else "gained"
    return "forgotten" if any(right for _, right, _ in course) else "never"


def _lost(course: Sequence[tuple[int, bool, Row]]) -> Lost:
    stage, _, old = next(step for step in course if step[1]) if course[0][1] else _last_right(course)
    since = next(later for later, _, _ in course if later > _last_right(course)[0])
    return Lost(course[-1][2], str(old.get("prediction", "")), stage, since)


def _last_right(course: Sequence[tuple[int, bool, Row]]) -> tuple[int, bool, Row]:
    return [step for step in course if step[1]][-1]


def _is_right(row: Row, metric: str) -> bool:
    scores = row.get("scores")
    if not isinstance(scores, dict):
        raise TypeError("a prediction has no scores")
    value = number(scores.get(metric, next(iter(scores.values()), None)))
    return value is not None and value >= (100.0 - 1e-6 if metric in RIGHT_OR_WRONG else GRADED_RIGHT)


def _key(study: Study) -> list[Html | str]:
    graded = sorted(
        {metric_word(study.metric_of(task)) for task in study.tasks if study.metric_of(task) not in RIGHT_OR_WRONG}
    )
    words: list[Html | str] = []
    for kind, title, meaning in KINDS:
        words += [el("span", el("span", class_=f"swatch {kind}"), f" {title}: {meaning}", class_="keyed"), " "]
    if graded:
        words.append(f"A {' or '.join(graded)} of {GRADED_RIGHT:.0f} or more counts as right here. ")
    if study.has_seeds:
        words.append("Of each method, the first seed is shown.")
    return words


def _balance(found: Sequence[tuple[MethodRuns, list[TaskMemory]]], study: Study) -> Html:
    rows = []
    for task in study.tasks:
        group = [(method, memory) for method, memories in found for memory in memories if memory.task == task]
        for place, (method, memory) in enumerate(group):
            rows.append(
                el(
                    "tr",
                    el("th", name_of(task), scope="rowgroup", rowspan=len(group)) if place == 0 else None,
                    el("th", name_of(method.title), scope="row", class_="who") if study.is_comparison else None,
                    el("td", _stack(memory.counts)),
                    class_="first" if place == 0 else None,
                )
            )
    heads = ["Task", *(["Method"] if study.is_comparison else []), "What has become of its rows"]
    return el(
        "table",
        el("caption", "Evaluation rows of the earlier tasks"),
        el("thead", el("tr", *(el("th", el("span", head, class_="hidden"), scope="col") for head in heads))),
        el("tbody", *rows),
        class_="balance",
    )


def _stack(counts: dict[str, int]) -> Html:
    total = sum(counts.values())
    parts = [
        el(
            "span",
            el("span", count(counts[kind])) if counts[kind] / total >= 0.05 else None,
            class_=f"part {kind}",
            style=f"--share:{counts[kind] / total:.4f}",
            title=f"{title}: {counts[kind]} of {total}",
        )
        for kind, title, _ in KINDS
        if counts[kind]
    ]
    spoken = ", ".join(f"{title} {counts[kind]}" for kind, title, _ in KINDS)
    return el("div", *parts, class_="stack", role="img", aria_label=f"{spoken}, of {total}")


def _examples(method: MethodRuns, memories: list[TaskMemory], most: int, study: Study) -> Html | None:
    total = sum(len(memory.lost) for memory in memories)
    if not total:
        return el("p", el("strong", name_of(method.title)), " has forgotten no instance.")
    return el(
        "details",
        el(
            "summary",
            el("strong", name_of(method.title)),
            f": {plural(total, 'instance')} forgotten, old and new answers",
        ),
        *(_task_examples(memory, most, method.first) for memory in memories if memory.lost),
        class_="lost",
        open=not study.is_comparison,
    )


def _task_examples(memory: TaskMemory, most: int, run: Run) -> Html:
    lost = memory.lost
    chosen = lost if len(lost) <= most else [lost[place * len(lost) // most] for place in range(most)]
    shown_count = "" if len(chosen) == len(lost) else f", {in_words(len(chosen))} shown"
    stage = run.stages[run.finished - 1].name
    place = f"{run.folder.name}/stages/{stage}/predictions/{memory.task}/predictions.jsonl"
    rest = el("p", "All answers of now: ", el("code", place), class_="soft") if shown_count else None
    instruction = str(lost[0].row.get("instruction", ""))
    names = {stage.index: stage.name for stage in run.stages}
    items = []
    for item in chosen:
        question = str(item.row.get("input") or item.row.get("instruction", ""))
        items.append(
            el(
                "li",
                shown(question, 400),
                el(
                    "dl",
                    *_answer("gold", str(item.row.get("gold", ""))),
                    *_answer(f"after {names[item.old_stage]}", item.old_answer, "✓ "),
                    *_answer("now", str(item.row.get("prediction", "")), "✕ "),
                ),
                el("p", f"wrong since {names[item.wrong_since]}", class_="soft"),
            )
        )
    return el(
        "section",
        el("h3", name_of(memory.task), f": {plural(len(lost), 'instance')} forgotten{shown_count}"),
        el("div", shown(instruction, 400), class_="instruction") if instruction else None,
        el("ul", *items, class_="rows wide"),
        rest,
    )


def _answer(title: str, text: str, mark: str = "") -> tuple[Html, Html]:
    return el("dt", mark, name_of(title)), el("dd", shown(text, 300))
