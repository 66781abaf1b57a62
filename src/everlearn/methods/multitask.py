"""Multi-task training: one stage over the training rows of all tasks together.

The upper bound of every comparison ("MTL" in arXiv 2403.01244; spec section 8): same settings, all data at once.
"""

from __future__ import annotations

from everlearn.data.instance import TaskStream
from everlearn.methods.base import Method, Stage
from everlearn.methods.registry import register


@register
class Multitask(Method):
    """Merges the stream into one stage."""

    traits = frozenset({"trains once"})

    def stages(self, stream: TaskStream) -> list[Stage]:
        """One stage with all tasks."""
        return [Stage(index=1, tasks=stream.tasks, seen=(), is_last=True)]
