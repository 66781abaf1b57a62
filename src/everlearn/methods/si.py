"""Synaptic intelligence: parameters that lowered the loss of earlier stages are pulled back to where those ended.

While a stage trains, each parameter's share in the fall of the loss is summed along the path
(`everlearn.training.path_integral`); at its end that sum over the squared distance travelled is added to the
parameter's importance Omega. From the second stage on, loss = cross-entropy + strength * sum of Omega (theta -
theta*)^2, theta* the values at the end of the previous stage.
Source: Zenke et al. 2017 (arXiv 1703.04200; its body could not be read), the form as mammoth has it: no factor 1/2,
the gradient of the loss alone. mammoth then clips gradients by value at 1, which is left to `max_grad_norm` here. Its
first stage has the path to follow, so it is not shared with plain training, though its weights are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.training.quadratic_penalty import Anchored

if TYPE_CHECKING:
    import numpy as np

    from everlearn.training.influence import Influence


class SIOptions(MethodOptions):
    """How strong the pull is and how importance is counted."""

    strength: Annotated[float, Field(ge=0)] = 0.5
    """c (mammoth's presets have 0.3 to 1)."""
    xi: Annotated[float, Field(gt=0)] = 0.1
    """Added to the squared distance that a parameter has travelled (mammoth's presets have 0.1 to 1)."""
    clamp: bool = True
    """Whether a stage that has raised the loss along a parameter adds 0 (chosen here: a negative importance would
    push away); false: as mammoth, it adds less than 0."""


@register
class SI(Method):
    """Pulls each tuned parameter back as strongly as it has lowered the losses of the stages before."""

    Options = SIOptions
    options: SIOptions
    traits = frozenset({"penalty"})

    def __init__(self, options: SIOptions) -> None:
        super().__init__(options)
        self._kept = Anchored()

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The sum along the path, and from the second stage on strength * sum Omega (theta - theta*)^2."""
        from everlearn.training.path_integral import PathIntegral
        from everlearn.training.quadratic_penalty import Pull

        path = PathIntegral(self.options.xi)
        return [path] if context.stage.index == 1 else [path, Pull.to(self._kept, self.options.strength)]

    def after_stage(self, context: StageContext) -> None:
        """Adds the stage's importance and keeps the weights that it has reached; after the last stage nothing."""
        from everlearn.training.checkpoint import left_by
        from everlearn.training.path_integral import PathIntegral
        from everlearn.training.quadratic_penalty import decayed, values_of

        if context.stage.is_last:
            self._kept = Anchored()
            return
        assert context.state.folder is not None, "the stage was trained"
        found = left_by(PathIntegral, context.state.folder)
        if self.options.clamp:
            found = {name: values.clip(min=0) for name, values in found.items()}
        self._kept = decayed(self._kept, Anchored(values_of(context.latest().model), found), gamma=1.0)

    def state_tensors(self) -> dict[str, np.ndarray]:
        """theta* and Omega by parameter name."""
        return self._kept.to_tensors()

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes them back."""
        self._kept = Anchored.from_tensors(tensors)
