"""A slow copy of the weights in training, which follows them, and a tie of hidden states to it (I-LoRA).

After optimizer step n, counted from 1,

    a = min(1 - 1 / (n + 1), keep)        slow = a * slow + (1 - a) * fast

for each tensor, so for A and B of an adapter apart and not for their product. On the rows of a memory

    term = strength * mean over layers, positions and width of (h_fast - h_slow)^2        two_sided
                                                        ... of (h_fast - max(h_fast, h_slow))^2    one_sided

over the states between the layers, the embeddings first. One-sided, only entries below the slow ones are pulled up.
Positions are the tokens of a row but the last, which predicts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from everlearn.training.divergences import exchanged
from everlearn.training.influence import Influence, OptimizerStep, Seen, Training

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    from torch import Tensor

    from everlearn.training.rows import EncodedRow

Sides = Literal["two_sided", "one_sided"]


def kept_share(step: int, keep: float) -> float:
    """The share of itself that the slow weight keeps after a step, counted from 1."""
    return min(1 - 1 / (step + 1), keep)


def followed(slow: Tensor, fast: Tensor, share: float) -> Tensor:
    """The slow weight after a step, keeping a share of itself."""
    return share * slow + (1 - share) * fast


def gaps(fast: Tensor, slow: Tensor, sides: Sides) -> Tensor:
    """Squared distances of hidden states, entry by entry; the gradient flows to the fast ones.

    Args:
        fast: Of the weights in training.
        slow: Of the slow ones, of the same shape.
        sides: Which differences count.
    """
    difference = fast - slow.detach()
    return (difference if sides == "two_sided" else difference.clamp(max=0)).square()


class SlowAdapter(Influence):
    """Keeps a slow copy of the weights, and leaves it by parameter name.

    Args:
        keep: Most that the slow weights keep of themselves in a step.
        done: Steps that they have followed before.
        slow: The slow weights by parameter name; None: those that training starts with.
    """

    def __init__(self, keep: float, *, done: int = 0, slow: Mapping[str, np.ndarray] | None = None) -> None:
        self._keep, self._done, self._start = keep, done, slow

    def begin(self, training: Training) -> None:
        """Takes the slow weights to the device."""
        weights = training.parameters
        values = weights if self._start is None else training.beside(self._start)
        self._slow = {name: value.detach().clone() for name, value in values.items()}
        self._pairs = [(weight, self._slow[name]) for name, weight in weights.items()]

    def view(self) -> AbstractContextManager[None]:
        """The model with the slow weights."""
        return exchanged(self._pairs)

    def after_step(self, step: OptimizerStep) -> None:
        """The slow weights follow."""
        share = kept_share(self._done + step.number + 1, self._keep)
        for fast, slow in self._pairs:
            slow.copy_(followed(slow, fast.detach(), share))

    def left(self) -> Mapping[str, Tensor]:
        """The slow weights."""
        return self._slow

    def state(self) -> Mapping[str, Tensor]:
        """The same."""
        return self._slow

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes them back."""
        for name, slow in self._slow.items():
            slow.copy_(tensors[name])


class TieToSlow(Influence):
    """Ties the hidden states of a memory's rows to those under slow weights.

    Args:
        slow: Keeps those weights; it begins before this one.
        memory: Group of the rows.
        strength: Of the tie.
        sides: Which differences count.
    """

    reads = True
    reads_layers = True

    def __init__(self, slow: SlowAdapter, memory: str, strength: float, sides: Sides) -> None:
        self._slow, self._memory, self._strength, self._sides = slow, memory, strength, sides

    def _is_tied(self, row: EncodedRow) -> bool:
        return row.group == self._memory

    def units(self, rows: Sequence[EncodedRow]) -> int:
        """Positions of the memory's rows."""
        return sum(row.computed for row in rows if self._is_tied(row))

    def term(self, seen: Seen) -> Tensor | None:
        """The squared distances, summed over positions, their mean over layers and width."""
        import torch

        places = seen.tokens(self._is_tied)
        if not len(places):
            return None
        pairs = zip(seen.layers, seen.layers_again(self._slow.view), strict=True)
        each = [gaps(fast[places].float(), slow[places].float(), self._sides).mean(-1).sum() for fast, slow in pairs]
        return self._strength * torch.stack(each).mean()
