"""Plain sequential fine-tuning, without rehearsal: each stage trains on its own task alone.

The lower bound of every comparison ("Non-rehearsal" in arXiv 2403.01244; spec section 8). The adapter, or the whole
model, is carried on from stage to stage.
"""

from __future__ import annotations

from everlearn.methods.base import Method
from everlearn.methods.registry import register


@register
class Sequential(Method):
    """The hooks' defaults, which do nothing, are the method."""
