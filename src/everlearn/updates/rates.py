"""The rates of a plan: one schedule and its constants, in the forms that the paradigms need.

A whole schedule over a run, the constant main path, and the fast decay of a branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from everlearn.shares import share_of
from everlearn.training.schedules import Schedule

BRANCH_FORMS = {
    "cosine": "branch_cosine",
    "knee": "branch_linear",
    "multistep": "branch_multistep",
    "constant": "constant",
}
"""The fast decay that belongs to each schedule."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The schedule and its constants, common to all paradigms.

    Attributes:
        schedule: cosine, knee, multistep or constant.
        warm_up: Steps of the warm-up of a run that begins.
        initial_warm_up: The same for the first one, where it starts from a checkpoint; None: as `warm_up`.
        floor: Ratio of the minimal to the maximal rate.
        cycle: Cosine cycle as a multiple of the run's length.
        continue_cycle: The same for a continued version; None: `cycle`.
        explore: Share of a run that `knee` stays at the maximal rate after the warm-up.
        branch: Schedule whose decay the branches take; None: `schedule`.
        branch_floor: Its floor; None: `floor`.
        branch_cycle: Cosine cycle of a branch as a multiple of its length.
    """

    schedule: str = "cosine"
    warm_up: int = 0
    initial_warm_up: int | None = None
    floor: float = 0.1
    cycle: float = 1.0
    continue_cycle: float | None = None
    explore: float = 0.5
    branch: str | None = None
    branch_floor: float | None = None
    branch_cycle: float = 1.0

    def full(self, length: int, *, warm_up: int, is_continued: bool = False) -> Schedule:
        """One whole schedule over a run of `length` steps."""
        continued = self.cycle if self.continue_cycle is None else self.continue_cycle
        cycle = continued if is_continued else self.cycle
        return Schedule(
            self.schedule,
            length=length,
            warm_up=warm_up,
            floor=self.floor,
            cycle=None if cycle == 1 else cycle * length,
            explore=math.floor(share_of(self.explore, length)),
        )

    def main(self, offset: int) -> Schedule:
        """The main path from its step `offset` on."""
        return Schedule("constant", warm_up=self.first_warm_up, offset=offset)

    def fast(self, length: int) -> Schedule:
        """The decay of a branch of `length` steps."""
        return Schedule(
            BRANCH_FORMS[self.branch or self.schedule],
            length=length,
            floor=self.floor if self.branch_floor is None else self.branch_floor,
            cycle=None if self.branch_cycle == 1 else self.branch_cycle * length,
        )

    @property
    def first_warm_up(self) -> int:
        """Warm-up of the run that starts from the initial weights."""
        return self.warm_up if self.initial_warm_up is None else self.initial_warm_up
