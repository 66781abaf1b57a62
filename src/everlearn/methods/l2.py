"""L2 regularisation towards the previous stage's weights.

From the second stage on, loss = cross-entropy + strength * sum over the tuned parameters of (theta - theta*)^2, with
theta* the values at the end of the previous stage; no factor 1/2. Source: SSR's baseline (arXiv 2403.01244, Table 5;
spec section 8). theta* is kept as the method's state, so a resumed stage is pulled to the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    import numpy as np

    from everlearn.training.influence import Influence


class L2Options(MethodOptions):
    """How strong the pull is."""

    strength: Annotated[float, Field(ge=0)] = 0.1
    """lambda (the published scripts' default; the value behind the paper's table is not known)."""


@register
class L2(Method):
    """Pulls the tuned parameters back to where the last stage left them."""

    Options = L2Options
    options: L2Options
    traits = frozenset({"penalty"})
    bears_sharding = True

    def __init__(self, options: L2Options) -> None:
        super().__init__(options)
        self._anchors: dict[str, np.ndarray] = {}

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on strength * sum (theta - theta*)^2."""
        from everlearn.training.quadratic_penalty import Pull

        if context.stage.index == 1:
            return ()
        return [Pull(self.options.strength, self._anchors)]

    def after_stage(self, context: StageContext) -> None:
        """Keeps the weights that the stage has reached; after the last stage nothing."""
        from everlearn.training.quadratic_penalty import values_of

        self._anchors = {} if context.stage.is_last else values_of(context.latest().model)

    def state_tensors(self) -> dict[str, np.ndarray]:
        """theta* by parameter name."""
        return dict(self._anchors)

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes theta* back."""
        self._anchors = dict(tensors)
