"""Single-task training: each task is trained alone, from the base model.

Shows what every task can reach without the others; its first stage is the first stage of every method
("single" in arXiv 2403.01244; spec section 8).
"""

from __future__ import annotations

from everlearn.methods.base import Method, Stage, StartFrom
from everlearn.methods.registry import register


@register
class SingleTask(Method):
    """Starts every stage afresh."""

    traits = frozenset({"starts from the base"})

    def start_from(self, stage: Stage) -> StartFrom:
        """The base model."""
        return "base"
