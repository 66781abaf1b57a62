"""A quadratic pull of parameters back to where they were: strength * sum of weight * (parameter - anchor)^2.

L2 regularisation has weight 1, EWC the Fisher information. Without a factor 1/2, as in SSR's scripts (arXiv
2403.01244, spec section 8); summed over the parameters that training moves only (the others' terms are zero, P11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everlearn.models.parameters import tuned_parameters
from everlearn.training.influence import Influence, Training

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.nn import Module

    from everlearn.training.rows import EncodedRow


def quadratic_penalty(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """Sum over all tensors of `weights * (parameters - anchors) ** 2`.

    Args:
        parameters: theta, tensors of any shapes.
        anchors: theta*, of the same shapes.
        weights: F, of the same shapes; None: 1.

    Returns:
        A scalar.
    """
    import torch

    terms = []
    for at, (parameter, anchor) in enumerate(zip(parameters, anchors, strict=True)):
        squared = (parameter - anchor) ** 2
        terms.append((squared if weights is None else weights[at] * squared).sum())
    return torch.stack(terms).sum()


class Pull(Influence):
    """Pulls the parameters in training back to their anchors.

    Args:
        strength: lambda.
        anchors: Values by parameter name; exactly the parameters that training moves.
        weights: Weights by parameter name; None: 1.
    """

    def __init__(
        self, strength: float, anchors: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._strength, self._stored, self._stored_weights = strength, anchors, weights

    def begin(self, training: Training) -> None:
        """Pairs parameters, anchors and weights by name."""
        self._parameters = list(training.parameters.values())
        self._anchors = list(training.beside(self._stored).values())
        weights = self._stored_weights
        self._weights = None if weights is None else list(training.beside(weights).values())

    def penalty(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Strength times the quadratic penalty."""
        return self._strength * quadratic_penalty(self._parameters, self._anchors, self._weights)


def values_of(model: Module) -> dict[str, np.ndarray]:
    """A copy of the tuned parameters' values by name, float32."""
    return {
        name: parameter.detach().float().cpu().numpy().copy() for name, parameter in tuned_parameters(model).items()
    }
