"""A pull of adapter weights whose strength follows the task, and the share of new rows in each step (SERS).

    penalty = lambda(W) * (1 - share of rehearsed rows) * 1/2 * sum over tensors of mean((theta - theta*)^2)

A step of rehearsed rows alone is free. Each tensor's *mean* counts, so that the pull on one element is lambda / size:
weak, as published. theta* is where the phase begins, which is the last stage's adapter; in the released code it is
zero, which under adapters means the base.
Source: SERS, NeurIPS 2025, its released code (spec section 6.4); published: the share is that of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everlearn.data.mixture import OWN
from everlearn.training.influence import Influence, Training

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.training.rows import EncodedRow


PUBLISHED_GATE = 0.15
"""The released code leaves the pull out up to this strength, whatever the least one is."""


def pulled_names(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The parameters that are pulled, in their order: of adapters, on layers with a target in their name."""
    return [name for name in names if "lora" in name and any(target in name for target in targets)]


def mean_squares(parameters: Sequence[Tensor], anchors: Sequence[Tensor | None]) -> Tensor:
    """R: half the sum over tensors of the mean of the squared differences; an anchor of None is zero."""
    import torch

    pairs = zip(parameters, anchors, strict=True)
    gone = [weight if anchor is None else weight - anchor for weight, anchor in pairs]
    return 0.5 * torch.stack([difference.float().square().mean() for difference in gone]).sum()


def share_of_new(is_rehearsed: Sequence[bool]) -> float:
    """Share of the rows that are not rehearsed; 1 of none."""
    return 1 - sum(is_rehearsed) / max(1, len(is_rehearsed))


class SimilarityPull(Influence):
    """Pulls by task distance.

    Args:
        strength: lambda(W) of the stage.
        to_zero: Towards zero, not to where the phase begins.
        targets: Parts of the names of the layers whose adapters are pulled; None: all that training moves.
    """

    def __init__(self, strength: float, *, to_zero: bool, targets: Sequence[str] | None) -> None:
        self._strength, self._to_zero, self._targets = strength, to_zero, targets

    def inputs(self) -> Mapping[str, object]:
        """Strength and aim."""
        return {
            "strength": self._strength,
            "to_zero": self._to_zero,
            "targets": None if self._targets is None else list(self._targets),
        }

    def begin(self, training: Training) -> None:
        """Notes where the weights are."""
        names = list(training.parameters)
        if self._targets is not None:
            names = pulled_names(names, self._targets)
        self._parameters = [training.parameters[name] for name in names]
        self._anchors = [None if self._to_zero else weight.detach().clone() for weight in self._parameters]

    def penalty(self, rows: Sequence[EncodedRow]) -> Tensor | None:
        """By the share of new rows in the step."""
        weight = self._strength * share_of_new([row.group != OWN for row in rows])
        return weight * mean_squares(self._parameters, self._anchors) if weight else None
