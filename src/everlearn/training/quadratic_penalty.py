"""A quadratic pull of parameters back to where they were: strength * sum of weight * (parameter - anchor)^2.

L2 regularisation has weight 1, EWC the Fisher information. Without a factor 1/2, as in SSR's scripts (arXiv
2403.01244, spec section 8); summed over the parameters that training moves only (the others' terms are zero, P11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everlearn.models.parameters import tuned_parameters

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.nn import Module


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


class AnchoredModel:
    """A model's tuned parameters beside their anchors, paired once by name.

    Args:
        model: In training.
        anchors: Values by parameter name; exactly the parameters that training moves.
        weights: Weights by parameter name; None: 1.
    """

    def __init__(
        self, model: Module, anchors: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None = None
    ) -> None:
        import torch

        tuned = tuned_parameters(model)
        assert set(tuned) == set(anchors), "the stored values belong to the parameters in training"

        def beside(values: Mapping[str, np.ndarray]) -> list[Tensor]:
            return [torch.from_numpy(values[name]).to(tuned[name]) for name in tuned]

        self.parameters = list(tuned.values())
        self.anchors = beside(anchors)
        self.weights = beside(weights) if weights is not None else None

    def penalty(self, strength: float) -> Tensor:
        """Strength times the quadratic penalty."""
        return strength * quadratic_penalty(self.parameters, self.anchors, self.weights)


def values_of(model: Module) -> dict[str, np.ndarray]:
    """A copy of the tuned parameters' values by name, float32."""
    return {
        name: parameter.detach().float().cpu().numpy().copy() for name, parameter in tuned_parameters(model).items()
    }
