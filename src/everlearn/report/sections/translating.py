"""Translations by direction: scores before and at the end, and how well what was written keeps to its tags.

Directions are those that rows name in their instruction; a task whose rows name none counts as one. A direction is
trained where rows of its own were, else it is told by how many of its two languages were trained in any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from everlearn.data.instance import Instance
from everlearn.data.translation import LANGUAGES, direction_of, group_of
from everlearn.data.walks import OPENING, is_well_formed, walk_in
from everlearn.evaluation.languages import languages_of
from everlearn.report.facts.parsing import Row, form_of, mapping, number, rows_of, stands
from everlearn.report.facts.reading import Run
from everlearn.report.facts.study import Study
from everlearn.report.page.markup import Html, el, name_of
from everlearn.report.page.numbers import mean, percent, score, signed
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.blocks import block

_HELP = (
    "Scores by each task's metric, before the first stage and after the last (of the first seed). Well-formed: each "
    "of the four tags once and in order; the answer is what stands between its tags, and nothing where there is none. "
    "Off target: answers in another language than was asked for (with the extra langid; else not told)."
)
_TRAINED = "trained"


@dataclass
class _Found:
    """What is known of a direction, or of a task that names none."""

    group: str
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    well_formed: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    target: str = ""
    answers: list[str] = field(default_factory=list)

    @property
    def off_target(self) -> float | None:
        """Share of answers in another language than was asked for; None: not known."""
        there = [answer for answer in self.answers if answer.strip()]
        if self.target not in LANGUAGES.values() or not there or (found := languages_of(there)) is None:
            return None
        return 100.0 * sum(language != self.target for language in found) / len(there)


def translating(study: Study) -> Html | None:
    """The section's body; None where no row names a direction and no answer was cut out of tags."""
    blocks = []
    is_asked = False
    for method in study.methods:
        found = _of_run(method.first) if method.finished else {}
        is_asked |= any(one.well_formed for one in found.values()) or any(one.group for one in found.values())
        blocks.append(block(method, study, _table(found)))
    return el("div", el("p", _HELP, class_="soft"), *blocks) if is_asked else None


def _of_run(run: Run) -> dict[str, _Found]:
    """By direction or task, in the order of the tasks."""

    @cache
    def trained() -> set[tuple[str, str]]:
        """Read where a row names a direction alone."""
        return {pair for stage in run.stages for task in stage.tasks for pair in _trained(run, stage.index, task)}

    def group_of_pair(pair: tuple[str, str]) -> str:
        return _TRAINED if pair in trained() else group_of(*pair, {language for one in trained() for language in one})

    found: dict[str, _Found] = {}
    for task in run.tasks:
        for stage, is_end in ((0, False), (run.finished, True)):
            path = run.stage_folder(stage) / "predictions" / task.name / "predictions.jsonl"
            if not stands(path):
                continue
            with form_of(path):
                for row in rows_of(path):
                    pair = direction_of(Instance(str(row.get("instruction", "")), "", "", task.name))
                    name = " to ".join(pair) if pair else task.name
                    one = found.setdefault(name, _Found(group_of_pair(pair) if pair else ""))
                    one.target = pair[1] if pair else ""
                    _add(one, row, task.metric, is_end=is_end)
    return found


def _trained(run: Run, stage: int, task: str) -> set[tuple[str, str]]:
    path = run.stage_folder(stage) / "data" / task / "train.jsonl"
    if not stands(path):
        return set()
    with form_of(path):
        texts = {str(row.get("instruction", "")) for row in rows_of(path)}
    return {pair for text in texts if (pair := direction_of(Instance(text, "", "", task)))}


def _add(one: _Found, row: Row, metric: str, *, is_end: bool) -> None:
    value = number(mapping(row.get("scores")).get(metric))
    if value is not None:
        (one.after if is_end else one.before).append(value)
    if is_end:
        one.answers.append(str(row.get("prediction", "")))
    if is_end and "written" in row:
        response = OPENING + str(row["written"])
        one.well_formed.append(100.0 * is_well_formed(response))
        one.words.append(float(len((walk_in(response) or "").split())))


def _table(found: Mapping[str, _Found]) -> Html:
    heads = [
        "Direction",
        "Languages",
        "Before",
        "At the end",
        "Change",
        "Off target",
        "Well-formed",
        "Words of a walk",
    ]
    rows = [_line(name, one) for name, one in found.items()]
    for group in dict.fromkeys(one.group for one in found.values() if one.group):
        ends = [value for one in found.values() if one.group == group and (value := mean(one.after)) is not None]
        if len(ends) > 1:
            text = f"{group}: mean {score(mean(ends))}, worst {score(min(ends))}"
            rows.append(el("tr", el("th", text, scope="row", colspan=str(len(heads)))))
    return scrolling_table("Scores by direction", heads, rows, css="numbers")


def _line(name: str, one: _Found) -> Html:
    before, after = mean(one.before), mean(one.after)
    change = None if before is None or after is None else after - before
    cells = [
        one.group,
        score(before),
        score(after),
        signed(change),
        percent(off) if (off := one.off_target) is not None else "",
        percent(mean(one.well_formed)) if one.well_formed else "",
        score(mean(one.words)) if one.words else "",
    ]
    return el("tr", el("th", name_of(name), scope="row"), *(el("td", cell, class_="num") for cell in cells))
