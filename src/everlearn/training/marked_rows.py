"""The loss of whole rows in which one token counts more than the others.

    sum_i w_i CE_i / sum_i w_i        w_i = `weight` where the target is the mark, 1 elsewhere

Source: LAMOL's published code, whose token between question and answer counts fivefold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from everlearn.training.influence import Influence, Seen
from everlearn.training.losses import answer_cross_entropy

if TYPE_CHECKING:
    from torch.nn import Module

    from everlearn.training.rows import EncodedRow


def weights_of(targets: Tensor, mark: int, weight: float) -> Tensor:
    """The weight of each target, (targets,)."""
    return torch.where(targets == mark, float(weight), 1.0)


def weighted_sum(states: Tensor, head: Module | None, targets: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of cross-entropies.

    Args:
        states: That predict the targets, (targets, width); logits where there is no head.
        head: The output head over them.
        targets: Token ids, (targets,).
        weights: Of each, (targets,).
    """
    if head is not None:
        return answer_cross_entropy(states, head, targets, weights)[0]
    return (weights * cross_entropy(states, targets, reduction="none")).sum()


class MarkedRows(Influence):
    """Adds strength * the weighted mean over the tokens of a group's rows.

    Args:
        group: Its weight in the mixture is 0.
        mark: Token id.
        weight: Of the mark.
        strength: Factor of the mean.
    """

    reads = True

    def __init__(self, group: str, mark: int, weight: int, strength: float) -> None:
        self._group, self._mark, self._weight, self._strength = group, mark, weight, strength

    def units(self, rows: Sequence[EncodedRow]) -> int:
        """The sum of all weights."""
        targets = [one for row in rows if row.group == self._group for one in row.ids[max(row.prompt_length, 1) :]]
        return len(targets) + (self._weight - 1) * targets.count(self._mark)

    def term(self, seen: Seen) -> Tensor | None:
        """The weighted sum over the rows of a part."""
        places = seen.places(lambda row: row.group == self._group)
        if not len(places):
            return None
        targets = seen.targets[places]
        weights = weights_of(targets, self._mark, self._weight)
        states = seen.states[places]
        found = weighted_sum(states if seen.head is not None else states.float(), seen.head, targets, weights)
        return self._strength * found
