"""Whose weights answer which rows, where what a run has learnt stands in several models.

A method whose stages leave more than one model gives an answerer: models by name, and a rule that names one of them
for each row. The rule is plain values, so it is written beside the models that the run hands back, and what measures
them elsewhere routes in the same way. Rows are shown to it without their answers, and without the name of their task
unless it says that it knows tasks: such a run is told apart in the report, because a name that comes with each
question makes the tasks much easier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from everlearn.data.instance import Instance
from everlearn.models.state import ModelState
from everlearn.recipe import Section


class Answerer:
    """Chooses among models; a method has a subclass, or takes one of this file.

    Args:
        rule: How to choose.
        models: By name (letters, digits and `_`; PEFT takes no points).
    """

    Rule: ClassVar[type[Section]] = Section
    """Values of the rule, as they stand in files."""
    knows_task: bool = False
    """Whether it must be told which task a row belongs to, or which rows belong to one task."""
    asks: str = ""
    """What the function of `example` is given of a row."""
    about: str = ""
    """A sentence of the card that says what that is, where the word alone does not."""
    imports: ClassVar[tuple[str, ...]] = ()
    """Lines of Python that the example needs, beside `import json`; of the standard library."""
    example: str = ""
    """Python that defines `chosen(routing, ASKS)`, for the card of the models: a name, from the file's values."""

    def __init__(self, rule: Section, models: Mapping[str, ModelState]) -> None:
        self.rule = rule
        self.models = dict(models)

    def choose(self, rows: Sequence[Instance]) -> list[str]:
        """The names of the models that answer rows of one task."""
        raise NotImplementedError

    def named(self) -> Iterable[str]:
        """All names that the rule may choose."""
        raise NotImplementedError

    def inputs(self) -> Mapping[str, object]:
        """What answers depend on through it beside the models that it has chosen, as JSON."""
        return {}

    def names_for(self, rows: Sequence[Instance]) -> list[str]:
        """The same, shown no more of the rows than it may know."""
        asked = [
            replace(row, output="", references=(), id="", task=row.task if self.knows_task else "") for row in rows
        ]
        return self.choose(asked)


class TaskRule(Section):
    """A model for each task."""

    tasks: dict[str, str]
    """Task to the name of its model."""
    others: str
    """Name of the model that answers all other tasks."""


class ByTask(Answerer):
    """Each task is answered by a model of its own, so its name must be known."""

    Rule = TaskRule
    rule: TaskRule
    knows_task = True
    asks = "task"
    example = """\
def chosen(routing, task):
    return routing["rule"]["tasks"].get(task, routing["rule"]["others"])"""

    def choose(self, rows: Sequence[Instance]) -> list[str]:
        """By the name of the task."""
        return [self.rule.tasks.get(row.task, self.rule.others) for row in rows]

    def named(self) -> Iterable[str]:
        """Those of the tasks, and that of the others."""
        return (*self.rule.tasks.values(), self.rule.others)
