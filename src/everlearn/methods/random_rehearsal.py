"""Rehearsal of real rows: each stage trains on its own rows and a sample of the rows of each earlier task.

"RandSel" in arXiv 2403.01244 (spec sections 7 and 8). The published samples are cut, not drawn, because the rows of
the data stand in random order already: 10 % and 5 % from the front, 1 % from the end (`everlearn.data.samples`).
Samples are simply concatenated, the earliest task first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from everlearn.data.instance import Instance, Task
from everlearn.data.mixture import Mixture, shuffled
from everlearn.data.samples import drawn_rows, published_sample
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.shares import share_of


class RandomRehearsalOptions(MethodOptions):
    """Which rows are rehearsed."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each earlier task's training rows (published: 0.1 and 0.01)."""
    draw: Literal["published", "random"] = "published"
    """`published`: the sample of the paper's data files; `random`: drawn by the run's seed, for rows that do not stand
    in random order."""


@register
class RandomRehearsal(Method):
    """Rehearses real rows."""

    Options = RandomRehearsalOptions
    options: RandomRehearsalOptions
    traits = frozenset({"rehearses"})

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """The very rows."""
        return Forecast(self.rehearsal(context))

    def rehearsal(self, context: StageContext) -> Mixture:
        """A sample of each earlier task, in order of arrival."""
        rows = [row for task in context.stage.seen for row in self._sample(task, context.seed)]
        return shuffled("random_rehearsal", rows)

    def _sample(self, task: Task, seed: int) -> Sequence[Instance]:
        if self.options.draw == "published":
            return published_sample(task, self.options.ratio)
        return drawn_sample(task, self.options.ratio, seed)


def drawn_sample(task: Task, ratio: float, seed: int) -> list[Instance]:
    """Rows drawn without replacement; they depend on the seed and the task's name only.

    Args:
        task: With its training rows.
        ratio: Share of them, in (0, 1]; at least one is drawn.
        seed: Of the run.

    Returns:
        The rows in the order of the data.
    """
    count = max(1, round(share_of(ratio, len(task.train))))
    return drawn_rows(task, count, seed, "random_rehearsal")
