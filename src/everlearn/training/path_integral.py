"""How much each parameter has lowered the loss along the path of training (synaptic intelligence).

At every step, with g the gradient of the losses at theta before it (no penalty, before clipping):

    path += g * (theta_before - theta_after)

and when training ends, importance = path / ((theta_end - theta_start)^2 + xi). An entry may be negative.
Source: Zenke et al. 2017 (arXiv 1703.04200), as `mammoth` has it (models/si.py). With Adam steps do not go along g, so
weights of small gradients are rated too high.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from everlearn.training.influence import Influence, OptimizerStep, Training

if TYPE_CHECKING:
    from torch import Tensor


def add_to_path(path: Tensor, gradient: Tensor, before: Tensor, after: Tensor) -> None:
    """One step's share for one parameter, added in place; all of one shape."""
    path += gradient * (before - after)


def importance_of(path: Tensor, start: Tensor, end: Tensor, xi: float) -> Tensor:
    """What a stage adds to the importance of one parameter."""
    return path / ((end - start) ** 2 + xi)


class PathIntegral(Influence):
    """Follows training and leaves `importance` by parameter name.

    Args:
        xi: Keeps weights that have hardly moved from an importance without bound.
    """

    def __init__(self, xi: float) -> None:
        self._xi = xi

    def begin(self, training: Training) -> None:
        """Remembers where training starts (before a checkpoint is taken back)."""
        self._parameters = training.parameters
        self._start = {name: _copy(weight) for name, weight in self._parameters.items()}
        self._path = {name: weight.new_zeros(weight.shape) for name, weight in self._start.items()}

    def after_backward(self, step: OptimizerStep) -> None:
        """Keeps gradients and weights for the end of the step."""
        self._before = {
            name: (_copy(gradient), _copy(self._parameters[name])) for name, gradient in step.gradients.items()
        }

    def after_step(self, step: OptimizerStep) -> None:
        """Adds the step's share."""
        for name, (gradient, before) in self._before.items():
            add_to_path(self._path[name], gradient, before, self._parameters[name].detach().float())
        self._before = {}

    def left(self) -> Mapping[str, Tensor]:
        """The stage's importance."""
        return {
            name: importance_of(path, self._start[name], self._parameters[name].detach().float(), self._xi)
            for name, path in self._path.items()
        }

    def state(self) -> Mapping[str, Tensor]:
        """The path so far."""
        return self._path

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes it back."""
        for name, path in self._path.items():
            path.copy_(tensors[name])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone()
