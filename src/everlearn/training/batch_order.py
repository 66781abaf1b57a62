"""Which rows are trained at which step.

All rows are shuffled anew each epoch and cut into batches, the last of which may be smaller, as Transformers' Trainer
does with one process. The order of an epoch depends on the seed and the epoch alone, so a resumed stage needs no
stored generator state.
"""

from __future__ import annotations

import math

import torch

from everlearn.seeds import derive


def batches(row_count: int, *, batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """Row numbers of each optimizer step; a fractional last epoch is cut short."""
    per_epoch = math.ceil(row_count / batch_size)
    steps: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
        order = torch.randperm(row_count, generator=generator).tolist()
        steps += [order[at : at + batch_size] for at in range(0, row_count, batch_size)]
    return steps[: math.ceil(epochs * per_epoch)]
