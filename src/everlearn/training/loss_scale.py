"""Scaling of the loss where gradients are computed in float16, below whose smallest number they would vanish.

The scale is that of torch's GradScaler (Micikevicius et al. 2018, arXiv 1710.03740): halved when gradients overflow,
doubled after 2,000 steps in which none did. There a step that overflows is left out; here it is computed again, from
the same random stream, so that a stage has all its steps and influences see each of them once, with whole gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LEAST = 1.0
"""Gradients that overflow at this scale are no matter of scaling."""


class LossScale:
    """The scale of one training.

    Args:
        device: Where gradients are computed.
        computed_in: Their number format; of others than float16 the scale is 1.
    """

    def __init__(self, device: torch.device, computed_in: torch.dtype | None = None) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=computed_in == torch.float16)

    @property
    def value(self) -> float:
        """By which losses are multiplied."""
        return float(self._scaler.get_scale())

    def scaled(self, loss: Tensor) -> Tensor:
        """A loss for the backward pass."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def settle(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Makes gradients those of the loss itself; False: some were too large, and the scale is half of what it was.

        Args:
            optimizers: Of the weights; the same gradients in every process.
        """
        if not self._scaler.is_enabled():
            return True
        before = self.value
        for optimizer in optimizers:
            self._scaler.unscale_(optimizer)
        self._scaler.update()
        return self.value >= before

    def state(self) -> dict[str, Any]:
        """As JSON; nothing where nothing is scaled."""
        return dict(self._scaler.state_dict())

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes it back."""
        if state:
            self._scaler.load_state_dict(dict(state))
