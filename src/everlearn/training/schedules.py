"""Learning-rate schedules as plain functions of the step, for training, for plots and for other people's code.

Every function returns the factor by which the maximal rate is multiplied. `step` is the number of optimizer steps
already finished (0-based, what `torch.optim.lr_scheduler.LambdaLR` passes), so the update at `step` runs at this
factor; with a warm-up the first update runs at rate 0. Steps beyond the run's length count as its end. Use:

    LambdaLR(optimizer, functools.partial(cosine, length=1000, warm_up=100))
    LambdaLR(optimizer, Schedule("branch_cosine", length=600, floor=0.1))

`floor` is the ratio of the minimal to the maximal rate. Which schedules were compared and that a release needs a
complete decay is from arXiv 2410.04103 (learning-rate path switching); the formulas are the standard ones of the
literature its names point to: cosine; Knee (arXiv 2003.03977: constant, then linear decay); multi-step (arXiv
2401.02954: plateaus after 80 % and 90 %). Its own constants could not be read. The branch forms are chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction

PLATEAUS = (0.316, 0.1)
"""Factors of multi-step after 80 % and 90 % of the run (square root of 0.1, rounded, and 0.1)."""


def warm_up_factor(step: float, warm_up: int) -> float:
    """Linear rise from 0 at step 0 to 1 at step `warm_up`."""
    return min(1.0, max(0.0, step) / warm_up) if warm_up else 1.0


def cosine(step: float, *, length: int, warm_up: int = 0, floor: float = 0.1, cycle: float | None = None) -> float:
    """Half a cosine from 1 to `floor`.

    Args:
        step: Optimizer steps finished.
        length: Steps of the run, warm-up included.
        warm_up: Steps of the linear rise.
        floor: Factor at the end of the cycle, in [0, 1].
        cycle: Step at which the cosine reaches `floor`; nothing: `length`, a complete decay. A longer cycle leaves
            the rate high when the run ends; `inf` keeps it at 1.
    """
    step = min(max(0.0, step), length)
    if step < warm_up:
        return warm_up_factor(step, warm_up)
    end = length if cycle is None else cycle
    progress = min(1.0, (step - warm_up) / (end - warm_up)) if end > warm_up else 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def knee(step: float, *, length: int, explore: int, warm_up: int = 0, floor: float = 0.0) -> float:
    """The maximal rate for `explore` steps after the warm-up, then a linear decay to `floor` at `length`."""
    step = min(max(0.0, step), length)
    if step < warm_up:
        return warm_up_factor(step, warm_up)
    begin = warm_up + explore
    if step < begin or begin >= length:
        return 1.0
    return 1 - (1 - floor) * (step - begin) / (length - begin)


def multistep(step: float, *, length: int, warm_up: int = 0) -> float:
    """The maximal rate until 80 % of the run, then the first plateau, the second from 90 % on."""
    step = min(max(0.0, step), length)
    if step < warm_up:
        return warm_up_factor(step, warm_up)
    if step < 8 * length // 10:
        return 1.0
    return PLATEAUS[0] if step < 9 * length // 10 else PLATEAUS[1]


def constant(step: float, *, warm_up: int = 0) -> float:
    """The maximal rate for ever after the warm-up: the main path."""
    return warm_up_factor(step, warm_up)


def branch_cosine(step: float, *, length: int, floor: float = 0.1, cycle: float | None = None) -> float:
    """Fast decay of a branch by half a cosine; no warm-up, `length` is the branch's own."""
    return cosine(step, length=length, floor=floor, cycle=cycle)


def branch_linear(step: float, *, length: int, floor: float = 0.0) -> float:
    """Fast decay of a branch by a straight line: the decaying leg of `knee`."""
    return 1 - (1 - floor) * min(max(0.0, step), length) / length


def branch_multistep(step: float, *, length: int) -> float:
    """The two decayed plateaus of `multistep`, half of the branch each."""
    return PLATEAUS[0] if step < -(-length // 2) else PLATEAUS[1]


def branch_length(fraction: Fraction | float | str, steps: int) -> int:
    """max(1, floor(fraction * steps + 1/2)), computed exactly; a float is taken as the decimal that it prints as."""
    exact = fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))
    return max(1, math.floor(exact * steps + Fraction(1, 2)))


FACTORS: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "cosine": (cosine, ("length", "warm_up", "floor", "cycle")),
    "knee": (knee, ("length", "explore", "warm_up", "floor")),
    "multistep": (multistep, ("length", "warm_up")),
    "constant": (constant, ("warm_up",)),
    "branch_cosine": (branch_cosine, ("length", "floor", "cycle")),
    "branch_linear": (branch_linear, ("length", "floor")),
    "branch_multistep": (branch_multistep, ("length",)),
}
"""Each schedule's function and the parameters that it takes."""


@dataclass(frozen=True)
class Schedule:
    """A schedule with its parameters: callable with the step, comparable, and plain data as JSON.

    Attributes:
        name: One of `FACTORS`.
        length: Steps of the run or branch (unused by `constant`).
        warm_up: Steps of the linear rise.
        floor: Ratio of the minimal to the maximal rate.
        cycle: Of the cosine forms; nothing: `length`.
        explore: Steps that `knee` stays at the maximal rate.
        offset: Added to the step: a main path goes on counting in each of its segments.
        scale: Multiplies the factor (the control that continues at the minimal rate).
    """

    name: str
    length: int = 0
    warm_up: int = 0
    floor: float = 0.1
    cycle: float | None = None
    explore: int = 0
    offset: int = 0
    scale: float = 1.0

    def __call__(self, step: float) -> float:
        """The factor for the update after `step` finished ones."""
        function, names = FACTORS[self.name]
        return self.scale * function(step + self.offset, **{name: getattr(self, name) for name in names})

    def to_json(self) -> dict[str, object]:
        """The name and the parameters that matter to it; an infinite cycle is written as text."""
        kept = {"offset", "scale", *FACTORS[self.name][1]}
        values = {key: value for key, value in asdict(self).items() if key in kept}
        if values.get("cycle") == math.inf:
            values["cycle"] = "inf"
        return {"name": self.name, **values}
