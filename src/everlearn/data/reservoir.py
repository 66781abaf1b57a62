"""A memory of rows of which every row offered is held with the same probability, and what steps draw from it.

With k rows offered before, a row takes slot k if k < capacity, else slot u, drawn uniformly from 0..k, if it is below
capacity. What is held and drawn depends on the order of rows and on a seed alone, so a stage is planned before it is
trained.
Source: mammoth's reservoir (read).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from everlearn.data.herding import herded
from everlearn.data.instance import Instance, Task

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Reservoir:
    """Its size, and what enters it when.

    Attributes:
        capacity: Rows of it.
        is_once: Whether a row is offered in the first epoch alone.
        is_at_once: Whether a row can be drawn from the step after it was offered, or from the next stage on.
    """

    capacity: int
    is_once: bool = True
    is_at_once: bool = True


@dataclass(frozen=True)
class Plan:
    """What a stage's steps draw, and what the memory holds after it.

    Attributes:
        drawn: Items of each step.
        held: Items in the memory after the last step, by slot.
        offered: How many rows were offered up to then.
    """

    drawn: list[list[int]]
    held: list[int]
    offered: int


def slot_for(offered: int, capacity: int, draw: Callable[[int], int]) -> int | None:
    """The slot of the reservoir that the next row takes; None: none.

    Args:
        offered: Rows offered before.
        capacity: Slots.
        draw: A number from 0 to the given one, each as likely; asked only when all slots are taken.
    """
    slot = offered if offered < capacity else draw(offered)
    return slot if slot < capacity else None


def plan_of(
    steps: Sequence[Sequence[int]],
    held: Sequence[int],
    offered: int,
    reservoir: Reservoir,
    *,
    count: int,
    seed: int,
) -> Plan:
    """Plays a stage through.

    Args:
        steps: Items that each step trains and offers.
        held: Items in the memory before the stage.
        offered: Rows offered before the stage.
        reservoir: Of what size, and what enters it when.
        count: Memory rows of a step.
        seed: Of the draws.
    """
    stream, memory, known = random.Random(seed), list(held), set[int]()
    drawn = []
    for items in steps:
        source = memory if reservoir.is_at_once else held
        drawn.append(stream.sample(source, min(count, len(source))))
        for item in items:
            if reservoir.is_once and item in known:
                continue
            known.add(item)
            slot = slot_for(offered, reservoir.capacity, lambda most: stream.randint(0, most))
            offered += 1
            if slot == len(memory):
                memory.append(item)
            elif slot is not None:
                memory[slot] = item
    return Plan(drawn, memory, offered)


class Memory:
    """The rows that a method holds, as places in their tasks, and how many were offered."""

    def __init__(self) -> None:
        self.held: list[tuple[str, int]] = []
        self.offered = 0

    def rows(self, tasks: Sequence[Task]) -> list[Instance]:
        """The rows held, by slot, all of these tasks."""
        rows_of = {task.name: task.train for task in tasks}
        return [rows_of[task][place] for task, place in self.held]

    def planned(self, own: int, reservoir: Reservoir, *, count: int, seed: int) -> partial[Plan]:
        """The plan of a stage by its order; items are the numbers of the rows held before it, then of its own.

        Args:
            own: Rows of the stage.
            reservoir: Of what size, and what enters it when.
            count: Memory rows of a step.
            seed: Of the draws.
        """
        return partial(
            _plan, before=len(self.held), own=own, offered=self.offered, reservoir=reservoir, count=count, seed=seed
        )

    def follow(self, plan: Plan, tasks: Sequence[Task]) -> None:
        """Holds what a stage of these tasks has left in it."""
        places = [*self.held, *((task.name, place) for task in tasks for place in range(len(task.train)))]
        self.held, self.offered = [places[item] for item in plan.held], plan.offered

    def herd(self, seen: Sequence[Task], tasks: Sequence[Task], states: Sequence[np.ndarray], capacity: int) -> None:
        """Holds equal parts of all classes so far, each its most telling rows first.

        Args:
            seen: Tasks of the rows held.
            tasks: Whose rows come in.
            states: Of their training rows, (rows, width) each.
            capacity: Rows of the memory.
        """
        task_of = {task.name: task for task in (*seen, *tasks)}
        classes: dict[tuple[str, str], list[int]] = {}  # places of their rows
        came = [(task.name, place) for task in tasks for place in range(len(task.train))]
        for name, place in (*self.held, *came):
            label = task_of[name].train[place].output if task_of[name].labels else ""
            classes.setdefault((name, label), []).append(place)
        quota, features = capacity // len(classes), dict(zip([task.name for task in tasks], states, strict=True))
        for (name, _), places in classes.items():
            if name in features:
                places[:] = [places[at] for at in herded(features[name][places], quota)]
        self.held = [(name, place) for (name, _), places in classes.items() for place in places[:quota]]
        self.offered += len(came)

    def to_json(self) -> dict[str, object]:
        """As it is kept between stages."""
        return {"held": [list(place) for place in self.held], "offered": self.offered}

    def load(self, values: Mapping[str, object]) -> None:
        """Takes back what `to_json` gave."""
        held = cast("Sequence[tuple[str, int]]", values["held"])
        self.held, self.offered = [(task, place) for task, place in held], cast("int", values["offered"])


def drawn_by(
    order: Sequence[Sequence[int]], _: int, plan: Callable[[Sequence[Sequence[int]]], Plan]
) -> list[list[int]]:
    """What a group of the rows that a plan speaks of draws (see `everlearn.data.mixture.Draw`)."""
    return plan(order).drawn


def _plan(
    order: Sequence[Sequence[int]],
    *,
    before: int,
    own: int,
    offered: int,
    reservoir: Reservoir,
    count: int,
    seed: int,
) -> Plan:
    steps = [[before + number for number in step if number < own] for step in order]
    return plan_of(steps, range(before), offered, reservoir, count=count, seed=seed)
