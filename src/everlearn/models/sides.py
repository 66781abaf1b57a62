"""Lengths at which a model computes otherwise: rows on the two sides of one never share a batch.

Some rotary embeddings have other frequencies for sequences longer than the model was first trained on (LongRoPE:
Phi-3, Phi-4, PhiMoE). Transformers chooses them once for a whole batch, by its largest position, so that a short row
would be computed otherwise beside a long one. Which models do so is found by trying: a rotary embedding alone is asked
for the same position beside a near and beside the farthest one, and where the two differ, the length at which they
begin to is searched. That takes well under a millisecond and no forward pass of the model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from everlearn.models.padding import keeps_unknown_states

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

UNBOUNDED = 1 << 20
"""Longest row of a model that states no context."""
_UNASKABLE = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


class Sides:
    """The lengths at which a model begins to compute otherwise; most models have none.

    Args:
        model: Any causal language model, adapters in place or not.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED
        starts = set()
        self._alone_from = 0 if keeps_unknown_states(model) else longest + 1
        for embedding in _rotary_embeddings(model):
            start = _first_change(embedding, longest)
            if start is None:
                continue
            starts.add(start)
            if _differ(embedding, start, longest):  # it changes on and on
                self._alone_from = min(self._alone_from, start)
        self._starts = sorted(starts)

    def of(self, length: int) -> int:
        """The side of a row of so many tokens: its length where rows of one length alone may be together."""
        return length if length >= self._alone_from else bisect_right(self._starts, length)

    def end(self, side: int) -> int | None:
        """The first length beyond a side; None: there is none."""
        return self._starts[side] if side < len(self._starts) else None


def _first_change(embedding: Callable[[int], list[Tensor]], longest: int) -> int | None:
    """The first length at which the embedding is another than for the shortest rows."""
    low, high = 2, longest
    if high <= low or not _differ(embedding, low, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _differ(embedding, 2, middle) else (middle, high)
    return high


def _differ(embedding: Callable[[int], list[Tensor]], length: int, other: int) -> bool:
    near, far = embedding(length), embedding(other)
    return any(not bool((a == b).all()) for a, b in zip(near, far, strict=True))


def _rotary_embeddings(model: PreTrainedModel) -> Iterator[Callable[[int], list[Tensor]]]:
    """For each rotary embedding of text, and each type of layer where it tells them apart, how to ask it."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if kind is None:
            continue
        for layer in list(kind) if isinstance(kind, dict) else [None]:
            for axes in (1, 3):
                ask = _asker(module, layer, axes)
                try:
                    ask(2)
                except _UNASKABLE:
                    continue  # one of images, or of several axes
                yield ask
                break


def _asker(module: Module, layer: str | None, axes: int) -> Callable[[int], list[Tensor]]:
    """What the module gives for position 1 in a row of a given length."""
    import torch

    buffers = [buffer for name, buffer in module.named_buffers() if name.endswith("inv_freq")]
    device = buffers[0].device if buffers else None

    def ask(length: int) -> list[Tensor]:
        positions = torch.tensor([[1, length - 1]], device=device)
        positions = positions if axes == 1 else positions.expand(axes, 1, 2)
        options = {} if layer is None else {"layer_type": layer}
        with torch.no_grad():
            found = module(torch.zeros((1, 2, 1), device=device), positions, **options)
        return [part[..., 0, :].clone() for part in (found if isinstance(found, tuple) else (found,))]

    return ask
