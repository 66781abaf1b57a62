"""Plain sequential fine-tuning, without rehearsal: each stage trains on its own task alone.

The lower bound of every comparison ("Non-rehearsal" in arXiv 2403.01244; spec section 8). The adapter, or the whole
model, is carried on from stage to stage.
"""

from __future__ import annotations

from typing import Literal

from everlearn.data.mixture import Mixture
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register


class SequentialOptions(MethodOptions):
    """How the rows of a batch are averaged."""

    mean: Literal["tokens", "rows"] = "tokens"
    """`tokens`: over the answer tokens of the batch (published); `rows`: each row over its own tokens, then over the
    rows: the control of methods that average so, such as gere."""


@register
class Sequential(Method):
    """Nothing is added to plain training."""

    Options = SequentialOptions
    options: SequentialOptions

    def __init__(self, options: SequentialOptions) -> None:
        super().__init__(options)
        self.traits = frozenset({"weighs own rows"} if options.mean == "rows" else ())

    def overrides(self, hook: str) -> bool:
        """None, where the mean is the published one."""
        return self.options.mean != "tokens" and super().overrides(hook)

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """Nothing but plain training."""
        return Forecast(self.rehearsal(context))

    def rehearsal(self, context: StageContext) -> Mixture:
        """Nothing but the mean of the stage's own rows."""
        return Mixture() if self.options.mean == "tokens" else Mixture(own=(1.0, self.options.mean))
