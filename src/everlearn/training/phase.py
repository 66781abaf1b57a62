"""One stretch of training with one schedule. A stage has one phase, as a rule, or a few.

All phases of a stage walk the same steps: the order of the stage's rows and the random stream of each step depend on
the stage alone. So a phase that ends at a step, and another that goes on from there with weights and moments, are one
training; and two phases over the same steps see the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from everlearn.models.state import Tuning
from everlearn.training.schedules import Schedule

TRAINING = "training"
"""Name of the one phase that a stage has by default."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What is trained, from where, how long and at which rate.

    Attributes:
        name: Unique within its stage; also the place of its folder, unless it is the released one.
        parent: Phase of the same stage whose weights it starts from; None: the tuning's start.
        moments: `fresh`, or `inherit` those of the optimizer where the start was made, which must have kept them.
        tuning: Which parts move; None: the recipe's adapter or all weights, carried on from what the stage before
            has released. With a parent, its start is the parent's.
        changes: Keys of the recipe's `training` that differ.
        schedule: Factor of the rate by finished steps of the phase; None: that of the recipe over the phase.
        steps: From which step of the stage to which (not included); None: all.
        keeps_moments: Whether a later phase inherits the optimizer's moments.
        is_released: Whether its weights are what the stage has learnt: measured, and the start of the next stage.
            Exactly one phase of a stage is.
    """

    name: str = TRAINING
    parent: str | None = None
    moments: Literal["fresh", "inherit"] = "fresh"
    tuning: Tuning | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    schedule: Schedule | None = None
    steps: tuple[int, int] | None = None
    keeps_moments: bool = False
    is_released: bool = True

    def describe(self, tuning: Tuning) -> dict[str, object] | None:
        """What the weights depend on beyond start, rows and training settings, as JSON; None: nothing.

        Args:
            tuning: Of the phase, as it is trained.
        """
        found: dict[str, object] = {
            "moments": None if self.moments == "fresh" else self.moments,
            "tuning": tuning.describe(),
            "schedule": self.schedule and self.schedule.to_json(),
            "steps": self.steps and list(self.steps),
            "keeps_moments": self.keeps_moments or None,
        }
        return {key: value for key, value in found.items() if value is not None} or None


def check_phases(phases: Sequence[Phase]) -> None:
    """Holds a method to what a stage's phases must be: a contract between code, not the user's affair."""
    known: list[str] = []
    for phase in phases:
        assert phase.name not in known, f"two phases are called {phase.name}"
        assert phase.parent is None or phase.parent in known, f"{phase.name} starts from a phase before it"
        assert phase.steps is None or phase.steps[0] < phase.steps[1], f"{phase.name} has steps"
        known.append(phase.name)
    assert sum(phase.is_released for phase in phases) == 1, "exactly one phase of a stage is released"
