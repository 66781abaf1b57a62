"""Single-task training: each task is trained alone, from the base model.

Shows what every task can reach without the others; its first stage is the first stage of every method
("single" in arXiv 2403.01244; spec section 8).
"""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.methods.base import Method, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import ModelState, Tuning
from everlearn.training.phase import Phase


@register
class SingleTask(Method):
    """Starts every stage afresh."""

    traits = frozenset({"starts elsewhere"})

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """One, from the base model."""
        return [Phase(tuning=Tuning(ModelState(context.base_fingerprint)))]
