"""Two models that write together: each next token is chosen from a mixture of what both would write.

With weight alpha on the other model, in probabilities

    p = alpha * p_other + (1 - alpha) * p_own

and in raw logits the same with exp(logits) in place of p, where the model with the larger sum of them counts more.
Both are computed as a log-sum-exp in float32, which has the same largest token and cannot overflow. Penalty,
temperature and cuts apply to the logarithm of the mixture.
Source: SERS (NeurIPS 2025) and its code, which mixes logits; spec section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from everlearn.generation.decoding import Batch, KeyValueState
from everlearn.generation.protocol import Blend


def blended(own: Tensor, other: Tensor, blend: Blend) -> Tensor:
    """Logarithm of the mixture of two models' next tokens, up to a constant.

    Args:
        own: Logits of the model that writes, (rows, vocabulary).
        other: Of the other model, of the same shape.
        blend: Weight of the other model, and what is mixed.
    """
    own, other = own.float(), other.float()
    if blend.of == "probabilities":
        own, other = own.log_softmax(dim=-1), other.log_softmax(dim=-1)
    weights = torch.tensor([blend.weight, 1 - blend.weight], dtype=torch.float64).log().to(own)
    return torch.logaddexp(other + weights[0], own + weights[1])


class BlendedState:
    """The keys and values of both models; implements `KeyValueState`.

    Args:
        own: Of the model that writes.
        other: Of the other one.
        as_other: Within it, the other model computes.
        blend: How they are mixed.
    """

    def __init__(
        self,
        own: KeyValueState,
        other: KeyValueState,
        as_other: Callable[[], AbstractContextManager[None]],
        blend: Blend,
    ) -> None:
        self._own, self._other, self._as_other, self._blend = own, other, as_other, blend

    def takes(self, batch: Batch, copies: int) -> bool:
        """Whether both do."""
        return self._own.takes(batch, copies) and self._other.takes(batch, copies)

    def admit(self, batch: Batch, copies: int) -> Tensor:
        """Both read the prompts."""
        own = self._own.admit(batch, copies)
        with self._as_other():
            return blended(own, self._other.admit(batch, copies), self._blend)

    def step(self, tokens: Tensor) -> Tensor:
        """Both read what was written."""
        own = self._own.step(tokens)
        with self._as_other():
            return blended(own, self._other.step(tokens), self._blend)

    def keep(self, rows: Sequence[int]) -> None:
        """Both drop all rows but these."""
        self._own.keep(rows)
        self._other.keep(rows)
