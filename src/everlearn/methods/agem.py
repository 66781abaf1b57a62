"""A-GEM: the gradient of every step is kept from conflicting with that of rows of earlier tasks.

With g the gradient of a step and r that of the mean loss of a few memory rows at the same weights, both over all tuned
parameters as one vector: if g.r < 0, g becomes g - (g.r / r.r) r, before clipping. From the second stage on.
Source: Chaudhry et al. 2019 (arXiv 1812.00420, from memory: its body could not be read here) and mammoth's `agem`
(read), whose memory keeps one batch a task. Chosen here: `memory_per_task` rows of each finished task, drawn by seed
and task alone, so there is no state. The promise holds for plain gradient descent; Adam rescales the step elementwise.
Memory gradients are taken in training mode, as in the official code of GEM. Cost: a second forward and backward pass a
step, and two copies of the tuned weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from everlearn.data.mixture import Mixture, memories
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    from everlearn.training.influence import Influence


class AGEMOptions(MethodOptions):
    """How much is remembered, and how much of it each step looks at."""

    memory_per_task: Annotated[int, Field(ge=1)] = 64
    """Rows kept of each finished task (chosen here)."""
    sample: Annotated[int, Field(ge=1)] | None = None
    """Memory rows drawn anew in each step; nothing: as many as a batch has (published)."""


@register
class AGEM(Method):
    """Projects the gradient where it would raise the loss of rows of earlier tasks."""

    Options = AGEMOptions
    options: AGEMOptions
    title = "A-GEM"
    traits = frozenset({"projects gradients"})

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """The very rows."""
        return Forecast(self.rehearsal(context))

    def rehearsal(self, context: StageContext) -> Mixture:
        """Rows of each earlier task, which no step trains on."""
        return memories(self.name, context.stage.seen, self.options.memory_per_task, context.seed)

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The projection, once there are earlier tasks."""
        from everlearn.training.projection import OnAverage

        stage = context.stage
        if not stage.seen:
            return ()
        groups = [group.name for group in self.rehearsal(context).groups]
        tells = len(stage.seen) == 1
        return [OnAverage(groups, tells, sample=self.options.sample or context.training.batch_size)]
