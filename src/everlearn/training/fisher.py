"""Empirical Fisher information of the tuned parameters: the mean squared gradient of single rows' losses.

Row by row (batch size 1), model in evaluation mode, loss the mean cross-entropy of the gold answer's tokens, at the
weights as they are. Source: SSR's EWC baseline (arXiv 2403.01244, spec section 8) after Kirkpatrick et al. 2017
(arXiv 1612.00796).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from everlearn.models.parameters import tuned_parameters
from everlearn.training.answer_loss import AnswerLoss

if TYPE_CHECKING:
    import numpy as np

    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick
    from everlearn.training.rows import EncodedRow


def mean_squared_gradients(losses: Iterable[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Mean over the losses of the squared gradient of each with respect to each parameter.

    Args:
        losses: Scalars, made one after the other, so that only one graph is alive.
        parameters: Tensors that require gradients; one that a loss does not depend on has gradient 0.

    Returns:
        One tensor a parameter, of its shape, float32: in bfloat16 a sum of some hundred squares stands still.
    """
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient.float() ** 2
        count += 1
    return [total / max(1, count) for total in sums]


def fisher_information(
    loaded: LoadedModel, rows: Sequence[EncodedRow], tick: Tick | None = None
) -> dict[str, np.ndarray]:
    """The empirical Fisher information of the tuned parameters on rows.

    Args:
        loaded: The model that has just learnt the rows' task.
        rows: Encoded as in training.
        tick: Called with (rows done, rows in all).

    Returns:
        Parameter name to array of its shape, float32.
    """
    tuned = tuned_parameters(loaded.model)
    loss_of = AnswerLoss(loaded.model, pad_id=int(loaded.tokenizer.pad_token_id))

    def losses() -> Iterator[Tensor]:
        for done, row in enumerate(rows, 1):
            yield loss_of([row]) / row.answer_count
            if tick:
                tick(done, len(rows))

    training = loaded.model.training
    loaded.model.eval()
    with _requiring_gradients(list(tuned.values())):
        means = mean_squared_gradients(losses(), list(tuned.values()))
    loaded.model.train(training)
    return {name: mean.cpu().numpy() for name, mean in zip(tuned, means, strict=True)}


@contextmanager
def _requiring_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within the block all of them require gradients; afterwards each does what it did."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, did in zip(parameters, before, strict=True):
            parameter.requires_grad_(did)
