"""What is rehearsed beside a stage's own rows, and how it meets them.

Every row of a step belongs to a group, and the loss of a step is the sum over groups of weight times mean. Without
further groups that is the mean over the answer tokens of the batch. A row of raw text has no answer: all its tokens
but the first are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from everlearn.data.instance import Instance, Task
from everlearn.data.samples import drawn_rows
from everlearn.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from everlearn.data.prompts import PromptTemplate

OWN = "own"
"""Name of the group of the stage's own rows."""

Mean = Literal["tokens", "own", "rows", "groups"]
"""How a group's loss is averaged. `tokens`: with the stage's own rows, as these are; they themselves over the answer
tokens of the step. `own`: over the group's own answer tokens in the step. `rows`: each row over its own tokens, then
over the rows of all groups that say so. `groups`: over the group's own answer tokens, then over those groups that say
so and have rows in the step."""

Draw = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]]
"""The order of the shuffled rows (row numbers of each step) and a seed, to the group's row numbers of each step."""


@dataclass(frozen=True)
class Group:
    """Rows that a method adds to a stage.

    Attributes:
        name: A name of the method's own, so that stacked methods do not meet; influences find their rows by it.
        rows: In order.
        per_step: None: shuffled among the stage's own rows (as SSR was published); else so many in every step, or
            fewer where `drawn` gives fewer; 0: no step trains on them, influences alone look at them.
        is_within: Whether those take places of the batch, or come on top of it.
        drawn: Which rows of the group each step gets, planned before training from order and seed, so that there is
            nothing to resume; None: passes over the rows, each shuffled. Only with `per_step`.
        weight: Of the group's mean in the loss; 0 where only the influences' terms count.
        mean: How its loss is averaged.
        follows: For each row the group (a shuffled one, or `OWN`) and the number of another: steps that hold that one
            hold it too, on top of the batch. Not with `per_step`.
        template: How its rows are worded; None: as the run's. Such a wording sees to its own lengths.
    """

    name: str
    rows: Sequence[Instance]
    per_step: int | None = None
    is_within: bool = True
    drawn: Draw | None = None
    weight: float = 1.0
    mean: Mean = "tokens"
    follows: Sequence[tuple[str, int]] = ()
    template: PromptTemplate | None = None

    @property
    def is_shuffled(self) -> bool:
        """Whether its rows stand among the stage's own."""
        return self.per_step is None and not self.follows


@dataclass(frozen=True)
class Mixture:
    """The groups of a stage beside its own rows.

    Attributes:
        groups: What methods add, in order: rows of the earliest task first.
        own: Weight and mean of the stage's own rows; None: (1, "tokens").
        rewritten: The stage's own rows as they are trained on; None: as they are.
    """

    groups: Sequence[Group] = ()
    own: tuple[float, Mean] | None = None
    rewritten: Sequence[Instance] | None = None

    @property
    def rehearsed(self) -> list[Instance]:
        """The rows that steps train on, in order; those in another wording once."""
        return [row for group in self.groups if group.per_step != 0 and not group.follows for row in group.rows]

    @property
    def rows(self) -> list[Instance]:
        """The rows of all groups, in order."""
        return [row for group in self.groups for row in group.rows]

    def describe(self) -> object:
        """What the trained weights depend on beyond rows that are shuffled in plainly, as JSON; None: nothing."""
        is_plain = self.own is None and all(
            group.is_shuffled and group.template is None and group.weight == 1.0 and group.mean == "tokens"
            for group in self.groups
        )
        if is_plain:
            return None
        groups = [
            [
                *(group.name, len(group.rows), group.per_step, group.is_within, group.weight, group.mean),
                *([fingerprint_of([list(place) for place in group.follows])] if group.follows else ()),
                *([group.template.name] if group.template else ()),
            ]
            for group in self.groups
        ]
        return {"own": list(self.own or (1.0, "tokens")), "groups": groups}


def shuffled(name: str, rows: Sequence[Instance]) -> Mixture:
    """Rows that are shuffled among the stage's own, as if they were such."""
    return Mixture((Group(name, tuple(rows)),)) if rows else Mixture()


def memories(name: str, tasks: Sequence[Task], count: int, seed: int) -> Mixture:
    """Rows drawn of each task that no step trains on, for influences to look at: a group `NAME/TASK` each."""
    drawn = {task.name: tuple(drawn_rows(task, count, seed, name)) for task in tasks}
    groups = [Group(f"{name}/{key}", rows, per_step=0, is_within=False, drawn=_none) for key, rows in drawn.items()]
    return Mixture(tuple(groups))


def _none(order: Sequence[Sequence[int]], seed: int) -> Sequence[Sequence[int]]:
    return [()] * len(order)
