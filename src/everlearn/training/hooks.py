"""What a method may add to training: a loss of its own, a penalty, an act after each step.

`everlearn.methods.base.Method` fits this protocol; the trainer knows no more of methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from everlearn.training.answer_loss import AnswerLoss
    from everlearn.training.rows import EncodedRow


class TrainingHooks(Protocol):
    """The moments of training at which a method acts."""

    def loss(self, model: Module, batch: Mapping[str, Tensor], plain_loss: Tensor) -> Tensor:
        """The mean loss of one micro-batch; `plain_loss` is the mean cross-entropy on its answer tokens."""
        ...

    def penalty(self, model: Module) -> Tensor | None:
        """A scalar added once per optimizer step, or None."""
        ...

    def after_step(self, model: Module, optimizer: Optimizer) -> None:
        """Called after the optimizer's step."""
        ...


class PaddedBatch(Mapping[str, "Tensor"]):
    """`input_ids`, `attention_mask` and `labels` of a micro-batch, made only when a hook looks at them."""

    def __init__(self, loss: AnswerLoss, rows: tuple[EncodedRow, ...]) -> None:
        self._loss, self._rows = loss, rows
        self._tensors: dict[str, Tensor] | None = None

    def _made(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors = self._loss.padded(self._rows)
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._made()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())
