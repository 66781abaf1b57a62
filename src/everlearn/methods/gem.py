"""GEM: the gradient of every step is kept from conflicting with that of any earlier task.

With g the gradient of a step and G the gradients of the mean loss of each earlier task's memory at the same weights,
all over all tuned parameters as one vector: if any entry of G g is negative, g becomes g + G' v with

    v = argmin 1/2 v' (G G' + epsilon I) v + (G g)' v   subject to v >= margin,

before clipping. A margin above 0 pushes beyond orthogonality: once any task is in conflict, at least so much of
*every* memory gradient is added. From the second stage on.
Source: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840, from memory: its body could not be read here) and the official
code (read). Its epsilon is an absolute 1e-3, which for the small gradients of language models leaves the conflict as
it is (91 % of it where a memory's gradient has norm 0.01); so here it is relative to the mean of the diagonal of G G'
unless `epsilon_is: absolute` asks for the official one. Its memory is the last 256 rows of a task; here rows are drawn
by seed and task alone, so there is no state. The promise holds for plain gradient descent; Adam rescales the step
elementwise. Memory gradients are taken in training mode, as in the official code. Cost: a forward and backward pass a
step and one copy of the tuned weights for each earlier task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from everlearn.data.mixture import Mixture, memories
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    from everlearn.training.influence import Influence


class GEMOptions(MethodOptions):
    """How much is remembered, and how far the gradient is turned."""

    memory_per_task: Annotated[int, Field(ge=1)] = 64
    """Rows kept of each finished task; every step computes all their gradients (published: 256, a choice here)."""
    margin: Annotated[float, Field(ge=0)] = 0.5
    """Least weight of a memory's gradient once there is a conflict (published, "memory strength")."""
    epsilon: Annotated[float, Field(ge=0)] = 1e-3
    """What is added to the diagonal of G G' (official code)."""
    epsilon_is: Literal["relative", "absolute"] = "relative"
    """`relative`: epsilon is a factor of that diagonal's mean (chosen here); `absolute`: the official code."""


@register
class GEM(Method):
    """Turns the gradient until it raises the loss of no earlier task's memory."""

    Options = GEMOptions
    options: GEMOptions
    traits = frozenset({"projects gradients"})

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """The very rows."""
        return Forecast(self.rehearsal(context))

    def rehearsal(self, context: StageContext) -> Mixture:
        """Rows of each earlier task, which no step trains on."""
        return memories(self.name, context.stage.seen, self.options.memory_per_task, context.seed)

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The projection, once there are earlier tasks."""
        from everlearn.training.projection import OnEveryTask

        stage, options = context.stage, self.options
        if not stage.seen:
            return ()
        groups = [group.name for group in self.rehearsal(context).groups]
        tells = len(stage.seen) == 1
        is_relative = options.epsilon_is == "relative"
        return [OnEveryTask(groups, tells, margin=options.margin, epsilon=options.epsilon, relative=is_relative)]
