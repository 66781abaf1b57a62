"""Experience replay: rows of a memory are trained beside the new ones in every step.

A step draws `memory_batch` rows from the memory without replacement (all, if it holds fewer) and trains on them and
its own rows as one mean over their answer tokens; afterwards its own rows are offered to the memory. The memory is a
reservoir of `capacity` rows: with k rows offered before, a row takes slot k if k < capacity, else slot u, drawn
uniformly from 0..k, if u < capacity. So every row offered is held with the same probability, and the memory works
within the first stage already.
Source: mammoth's `er` and its reservoir (read), which offers the rows of every epoch (`offer: every_epoch`); offering
each row once is chosen here. What is drawn depends on the order of rows and the seed alone, so a stage's steps are
planned before it is trained; what is kept between stages are the places of the rows held and how many were offered.
Cost: a step takes twice as long where `memory_batch` is the batch size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from everlearn.data.mixture import Group, Mixture
from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    import numpy as np


class ExperienceReplayOptions(MethodOptions):
    """Size of the memory, and how its rows enter."""

    capacity: Annotated[int, Field(ge=1)] = 200
    """Rows of the memory, over all tasks (mammoth: 200, 500 or 5,120)."""
    memory_batch: Annotated[int, Field(ge=1)] | None = None
    """Memory rows in each step, on top of the batch; nothing: as many as a batch has (mammoth)."""
    offer: Literal["first_epoch", "every_epoch"] = "first_epoch"
    """Whether a row is offered to the memory once (chosen here) or in every epoch (mammoth)."""
    mean: Literal["joint", "separate"] = "joint"
    """`joint`: one mean over the answer tokens of new and memory rows (mammoth); `separate`: the mean over new rows
    and `beta` times that over memory rows."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the memory's mean; only with `mean: separate`."""

    @model_validator(mode="after")
    def _beta_has_a_mean(self) -> Self:
        if self.mean == "joint" and self.beta != 1.0:
            raise ValueError("beta weighs a mean of the memory's own, so it needs mean: separate")
        return self


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
    options: ExperienceReplayOptions,
    *,
    count: int,
    seed: int,
) -> Plan:
    """Plays a stage through.

    Args:
        steps: Items that each step trains and offers.
        held: Items in the memory before the stage.
        offered: Rows offered before the stage.
        options: The method's.
        count: Memory rows of a step.
        seed: Of the draws.
    """
    stream, memory, known = random.Random(seed), list(held), set[int]()
    drawn = []
    for items in steps:
        drawn.append(stream.sample(memory, min(count, len(memory))))
        for item in items:
            if options.offer == "first_epoch" and item in known:
                continue
            known.add(item)
            slot = slot_for(offered, options.capacity, lambda most: stream.randint(0, most))
            offered += 1
            if slot == len(memory):
                memory.append(item)
            elif slot is not None:
                memory[slot] = item
    return Plan(drawn, memory, offered)


@register
class ExperienceReplay(Method):
    """Trains rows of a memory beside the new ones in every step."""

    Options = ExperienceReplayOptions
    options: ExperienceReplayOptions
    traits = frozenset({"rehearses"})

    def __init__(self, options: ExperienceReplayOptions) -> None:
        super().__init__(options)
        self._held: list[tuple[str, int]] = []
        self._offered = 0

    def rehearsal(self, context: StageContext) -> Mixture:
        """The memory and the stage's own rows, which enter it as the stage goes on."""
        stage, options = context.stage, self.options
        rows_of = {task.name: task.train for task in stage.seen}
        rows = (*(rows_of[task][place] for task, place in self._held), *stage.rows)
        group = Group(
            self.name,
            rows,
            per_step=options.memory_batch or context.training.batch_size,
            is_within=False,
            drawn=partial(_drawn, planned=self._planned(context)),
            weight=options.beta,
            mean="tokens" if options.mean == "joint" else "own",
        )
        return Mixture((group,))

    def _planned(self, context: StageContext) -> partial[Plan]:
        """The plan of a stage by its order."""
        return partial(
            _plan,
            before=len(self._held),
            own=len(context.stage.rows),
            offered=self._offered,
            options=self.options,
            count=self.options.memory_batch or context.training.batch_size,
            seed=context.random_seed(self.name),
        )

    def after_stage(self, context: StageContext) -> None:
        """Keeps what the memory holds."""
        plan = self._planned(context)(context.order)
        own = [(task.name, place) for task in context.stage.tasks for place in range(len(task.train))]
        places = [*self._held, *own]
        self._held, self._offered = [places[item] for item in plan.held], plan.offered

    def state_json(self) -> dict[str, object]:
        """The rows held, as places in their tasks, and how many were offered."""
        return {"held": [list(place) for place in self._held], "offered": self._offered}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes them back."""
        held = cast("Sequence[tuple[str, int]]", values["held"])
        self._held, self._offered = [(task, place) for task, place in held], cast("int", values["offered"])


def _drawn(
    order: Sequence[Sequence[int]], _: int, planned: Callable[[Sequence[Sequence[int]]], Plan]
) -> list[list[int]]:
    return planned(order).drawn


def _plan(
    order: Sequence[Sequence[int]],
    *,
    before: int,
    own: int,
    offered: int,
    options: ExperienceReplayOptions,
    count: int,
    seed: int,
) -> Plan:
    """A stage by the numbers of the group's rows: those held before it, then its own."""
    steps = [[before + number for number in step if number < own] for step in order]
    return plan_of(steps, range(before), offered, options, count=count, seed=seed)
