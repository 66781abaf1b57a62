"""Answers of nothing: how many there are, and which measures of transfer rest on them.

A model that answers nothing has a score of 0, and one that answers again later seems to have gained: such a change is
none of what backward and forward transfer are meant to measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from everlearn.report.facts.study import MethodRuns, Study

MANY = 0.1
"""Share of empty answers of one task after one stage beyond which what is computed from it is doubtful."""
MOST_NAMED = 12


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One cell of the matrix, summed over seeds; stage 0 is the base model."""

    stage: int
    place: int
    task: str
    empty: int
    of: int


def empty_answers(method: MethodRuns, study: Study) -> str | None:
    """All cells with empty answers, as a sentence; None where there are none."""
    found = [cell for cell in _cells(method, study) if cell.empty]
    return f"Empty answers: {_listed(method, found)}." if found else None


def doubt(method: MethodRuns, study: Study) -> str | None:
    """Which measures rest on empty answers, as a sentence; None where none does."""
    trained = {task: stage.index for stage in method.first.stages for task in stage.tasks}
    last = method.finished
    cells = {(cell.stage, cell.task): cell for cell in _cells(method, study) if cell.empty > MANY * cell.of}
    used = {
        "BWT": ((at, task) for task, start in trained.items() if start < last for at in (start, last)),
        "forgetting": ((at, task) for task, start in trained.items() if start < last for at in range(start, last + 1)),
        "FWT": ((start - 1, task) for task, start in trained.items() if 1 < start <= last),
        "FWT_over_base": ((at, task) for task, start in trained.items() if 1 < start <= last for at in (start - 1, 0)),
    }
    names, resting = [], set()
    for metric, places in used.items():
        known = method.estimate(metric).value is not None
        if known and (found := {cells[place] for place in places if place in cells}):
            names.append(metric.replace("_", " "))
            resting |= found
    if not names:
        return None
    measures = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return (
        f"{measures} of {method.title} rest{'s' if len(names) == 1 else ''} on empty answers "
        f"({_listed(method, sorted(resting))}): where a model has answered nothing, a change of its score tells "
        "whether it answers, not what it has kept or gained."
    )


def _cells(method: MethodRuns, study: Study) -> Iterator[Cell]:
    for stage in range(method.finished + 1):
        for place, task in enumerate(study.tasks):
            counted = [run.matrix.empty_at(stage, task) for run in method.runs if run.matrix]
            yield Cell(stage, place, task, sum(empty for empty, _ in counted), sum(of for _, of in counted))


def _listed(method: MethodRuns, cells: Iterable[Cell]) -> str:
    """`after 01-trans: trans 7 of 16, para 16 of 16`."""
    cells = list(cells)
    parts = []
    for stage, group in groupby(cells[:MOST_NAMED], key=lambda cell: cell.stage):
        where = f"after {method.first.stages[stage - 1].name}" if stage else "base model"
        parts.append(f"{where}: " + ", ".join(f"{cell.task} {cell.empty} of {cell.of}" for cell in group))
    more = f"; and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
    return "; ".join(parts) + more
