"""Which rows are trained at which step.

All rows are shuffled anew each epoch and cut into batches, the last of which may be smaller, as Transformers' Trainer
does with one process. The order of an epoch depends on the seed and the epoch alone, so a resumed stage needs no
stored generator state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch.utils.data import Dataset

from everlearn.seeds import derive
from everlearn.shares import share_of

Row = TypeVar("Row")


class Batches(Dataset[list[Row]], Generic[Row]):
    """The rows of each optimizer step, drawn when they are asked for; a fractional last epoch is cut short.

    Args:
        rows: Of the stage.
        batch_size: Rows of a step.
        epochs: Passes over the rows.
        seed: Of the stage.
        done: Steps that are left out at the beginning.
    """

    def __init__(self, rows: Sequence[Row], *, batch_size: int, epochs: float, seed: int, done: int = 0) -> None:
        self.rows, self.batch_size, self.epochs, self.seed, self.done = rows, batch_size, epochs, seed, done
        self._per_epoch = math.ceil(len(rows) / batch_size)
        self._drawn: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return math.ceil(share_of(self.epochs, self._per_epoch)) - self.done

    def __getitem__(self, step: int) -> list[Row]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        epoch, place = divmod(self.done + step, self._per_epoch)
        if self._drawn[0] != epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
            self._drawn = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        return [self.rows[at] for at in self._drawn[1][place * self.batch_size : (place + 1) * self.batch_size]]

    def __iter__(self) -> Iterator[list[Row]]:
        return (self[step] for step in range(len(self)))

    def after(self, done: int) -> Batches[Row]:
        """The steps that follow so many."""
        return Batches(self.rows, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed, done=done)
