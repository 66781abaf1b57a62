"""A quadratic pull of parameters back to where they were: strength * sum of weight * (parameter - anchor)^2.

L2 regularisation has weight 1, EWC the Fisher information, SI and MAS an importance of their own. Without a factor
1/2, as in SSR's scripts (arXiv 2403.01244, spec section 8); summed over the parameters that training moves only (the
others' terms are zero, P11).

Pulls of several stages are one pull and a number, whatever their count: `summed` and `decayed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everlearn.models.parameters import tuned_parameters
from everlearn.training.influence import Influence, OptimizerStep, Training

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

    from everlearn.training.processes import total

    terms = []
    for at, (parameter, anchor) in enumerate(zip(parameters, anchors, strict=True)):
        squared = (parameter - anchor) ** 2
        terms.append(total((squared if weights is None else weights[at] * squared).sum()))
    return torch.stack(terms).sum()


@dataclass(frozen=True)
class Anchored:
    """What parameters are pulled to, and how strongly each: sum of weight * (parameter - anchor)^2 + constant.

    Attributes:
        anchors: By parameter name.
        weights: By parameter name.
        constant: What is left of a sum of pulls where it is least.
    """

    anchors: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    constant: float = 0.0

    def to_tensors(self, weight: str = "importance") -> dict[str, np.ndarray]:
        """Anchors and weights by kind and parameter name, for a method's state.

        Args:
            weight: What the weights are called.
        """
        kinds = {"anchor": self.anchors, weight: self.weights}
        return {f"{kind}/{name}": values for kind, of_kind in kinds.items() for name, values in of_kind.items()}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, np.ndarray], weight: str = "importance", *, constant: float = 0.0
    ) -> Anchored:
        """Takes back what `to_tensors` gave."""
        found: dict[str, dict[str, np.ndarray]] = {"anchor": {}, weight: {}}
        for key, values in tensors.items():
            kind, _, name = key.partition("/")
            found[kind][name] = values
        return cls(found["anchor"], found[weight], constant)


def summed(before: Anchored, now: Anchored) -> Anchored:
    """Two pulls as one that has the same value and gradient everywhere (Kirkpatrick et al.'s sum over tasks).

    With S the weights so far, c what they pull to, F and theta* of the stage:

        S' = S + F    c' = (S c + F theta*) / S', c where S' = 0
        constant' = constant + sum of S F / S' (c - theta*)^2

    The constant is summed in float64; three plain sums in its place would lose digits by cancellation.
    """
    import numpy as np

    if not before.weights:
        return now
    anchors, weights, constant = {}, {}, before.constant + now.constant
    for name, weight in now.weights.items():
        s, f = before.weights[name].astype(np.float64), weight.astype(np.float64)
        c, star = before.anchors[name].astype(np.float64), now.anchors[name].astype(np.float64)
        total = s + f
        share = np.divide(f, total, out=np.zeros_like(f), where=total != 0)
        anchors[name] = (c + share * (star - c)).astype(weight.dtype)
        weights[name] = total.astype(weight.dtype)
        constant += float((s * share * (c - star) ** 2).sum())
    return Anchored(anchors, weights, constant)


def decayed(before: Anchored, now: Anchored, gamma: float) -> Anchored:
    """The pull of all stages to where the last one ended (online EWC): weights gamma * F so far + F of the stage."""
    weights = {
        name: weight + gamma * before.weights[name] if before.weights else weight
        for name, weight in now.weights.items()
    }
    return Anchored(now.anchors, {name: w.astype(now.weights[name].dtype) for name, w in weights.items()})


class Pull(Influence):
    """Pulls the parameters in training back to their anchors.

    Args:
        strength: lambda.
        anchors: Values by parameter name; exactly the parameters that training moves.
        weights: Weights by parameter name; None: 1. Their mean is noted when training begins, since strengths mean
            nothing without it.
        constant: Added to the sum.
    """

    def __init__(
        self,
        strength: float,
        anchors: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray] | None = None,
        constant: float = 0.0,
    ) -> None:
        self._strength, self._constant = strength, constant
        self._stored, self._stored_weights = anchors, weights

    @classmethod
    def to(cls, anchored: Anchored, strength: float) -> Pull:
        """A pull as a method has kept it."""
        return cls(strength, anchored.anchors, anchored.weights, anchored.constant)

    def begin(self, training: Training) -> None:
        """Pairs parameters, anchors and weights by name."""
        self._parameters = list(training.parameters.values())
        self._anchors = list(training.beside(self._stored).values())
        weights = self._stored_weights
        self._weights = None if weights is None else list(training.beside(weights).values())

    def penalty(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Strength times the quadratic penalty."""
        found = quadratic_penalty(self._parameters, self._anchors, self._weights)
        return self._strength * (found + self._constant if self._constant else found)

    def after_step(self, step: OptimizerStep) -> None:
        """Notes the mean weight, once."""
        from everlearn.training.processes import total

        if step.number == 0 and self._weights is not None:
            whole = sum(total(weights.float().sum()) for weights in self._weights)
            step.note("mean_importance", whole / sum(weights.numel() for weights in self._weights))  # type: ignore[arg-type]


def values_of(model: Module) -> dict[str, np.ndarray]:
    """A copy of the tuned parameters' values by name, float32."""
    return {
        name: parameter.detach().float().cpu().numpy().copy() for name, parameter in tuned_parameters(model).items()
    }
