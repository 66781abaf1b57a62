"""Learning-rate path switching on a stream of tasks: what goes on learns at the full rate, what is released decays.

One and the same model cannot be the best release (that needs a complete decay of the rate) and the best start of the
next training (that needs a rate which has not decayed). So there are two kinds of paths. With T steps in a stage and
B = max(1, floor(branch_fraction * T + 1/2)):

    main    steps 0 to T - B at the maximal rate, from the end of the last stage's main path, moments included
    branch  steps T - B to T, from a copy of the main path, the rate falling completely; this is released
    tail    the same steps at the maximal rate, where another stage follows: the main path goes on

The rate rises once, at the beginning of the first stage (`training.warmup_ratio` of its steps). The branch falls as
`training.scheduler` says, `cosine` or `linear`. A stage costs 1 + branch_fraction times its steps, the last one them
alone.

Source: arXiv 2410.04103 (EMNLP 2024), where it is proposed for versions of a model pre-trained on raw text (`everlearn
update` does that); on tasks it is our transfer. Established from the paper: the constant maximal rate of the main
path, the complete and fast decay of a branch. Derived: 0.6, the only fraction that gives its costs of 58 % at four
versions. Chosen here, as the body could not be read: where a branch starts, its minimal rate, the moments it inherits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import Tuning
from everlearn.shares import share_of
from everlearn.training.phase import TRAINING, Phase
from everlearn.training.schedules import Schedule, branch_length

MINIMAL = {"cosine": 0.1, "linear": 0.0}


class PathSwitchingOptions(MethodOptions):
    """Length and depth of the branches."""

    branch_fraction: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a stage's steps in which the released model's rate falls (derived from the paper's costs)."""
    minimal_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The rate at a branch's end, as a share of the maximal one. Nothing means 0.1 for `cosine` and 0 for `linear`
    (chosen here, as in version updates; the paper's could not be read)."""
    branch_optimizer: Literal["inherit", "reset"] = "inherit"
    """Whether a branch goes on with the main path's moments (chosen here: it is the same run at another rate)."""


@register
class PathSwitching(Method):
    """Trains a main path at the maximal rate and releases branches whose rate decays."""

    Options = PathSwitchingOptions
    options: PathSwitchingOptions
    title = "path switching"
    traits = frozenset({"starts elsewhere"})

    def check(self, facts: Facts) -> None:
        """Refuses a schedule that does not decay.

        Raises:
            RecipeError: names the key and what it may be.
        """
        if facts.training.scheduler not in MINIMAL:
            raise RecipeError(
                f"method {self.name}: training.scheduler is {facts.training.scheduler}, but what is released needs a "
                "rate that decays: set it to cosine or linear."
            )

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """Main path, branch and, where a stage follows, the main path's tail.

        Raises:
            RecipeError: the first branch would start while the rate still rises.
        """
        options, index, steps = self.options, context.stage.index, context.steps
        length = branch_length(options.branch_fraction, steps)
        switch = steps - length
        warm_up = math.ceil(share_of(context.training.warmup_ratio, steps)) if index == 1 else 0
        if warm_up > switch:
            raise RecipeError(
                f"method {self.name}: the first branch would start at step {switch} of {steps}, inside the warm-up of "
                f"{warm_up} steps: lower training.warmup_ratio or branch_fraction."
            )
        start = Tuning(context.phase_of(index - 1, "tail") if index > 1 else context.state)
        moments: Literal["fresh", "inherit"] = "inherit" if index > 1 or switch else "fresh"
        main = "main" if switch else None
        name, floor = context.training.scheduler, options.minimal_ratio
        fall = Schedule(f"branch_{name}", length=length, floor=MINIMAL[name] if floor is None else floor)
        phases = [
            Phase(
                "main",
                moments="inherit" if index > 1 else "fresh",
                tuning=start,
                schedule=Schedule("constant", warm_up=warm_up),
                steps=(0, switch),
                keeps_moments=True,
                is_released=False,
            ),
            Phase(
                TRAINING,
                main,
                moments if options.branch_optimizer == "inherit" else "fresh",
                start,
                schedule=fall,
                steps=(switch, steps),
            ),
            Phase(
                "tail",
                main,
                moments,
                start,
                schedule=Schedule("constant"),
                steps=(switch, steps),
                keeps_moments=True,
                is_released=False,
            ),
        ]
        return phases[0 if switch else 1 : 2 if context.stage.is_last else 3]
