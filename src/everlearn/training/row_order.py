"""Which rows are trained at which step.

All shuffled rows are shuffled anew each epoch and cut into batches, the last of which may be smaller, as
Transformers' Trainer does with one process. Groups of which every step holds some have an order of their own. Every
order depends on the seed and the epoch alone and is drawn when it is asked for, so a resumed stage needs no stored
generator state and a plan of any length costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from everlearn.data.mixture import Group
from everlearn.seeds import derive
from everlearn.shares import share_of


class Batches(Sequence[list[int]]):
    """Row numbers of each optimizer step; a fractional last epoch is cut short.

    Args:
        row_count: Rows of an epoch.
        batch_size: Rows of a step.
        epochs: Passes over the rows.
        seed: Of the order.
    """

    def __init__(self, row_count: int, *, batch_size: int, epochs: float, seed: int) -> None:
        self._rows, self._size, self._seed = row_count, batch_size, seed
        self._per_epoch = math.ceil(row_count / batch_size)
        self._count = self.steps_of(epochs)
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self._per_epoch

    def steps_of(self, epochs: float) -> int:
        """Steps of so many epochs."""
        return math.ceil(share_of(epochs, self._per_epoch))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> list[int]:  # type: ignore[override]
        if not 0 <= step < self._count:
            raise IndexError(step)
        epoch, at = divmod(step, self._per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, shuffled(self._rows, self._seed, "order", epoch))
        return self._epoch[1][at * self._size : (at + 1) * self._size]

    def __iter__(self) -> Iterator[list[int]]:
        return (self[step] for step in range(self._count))


class Passes(Sequence[list[int]]):
    """So many rows of a group for every step: passes over them, each shuffled.

    Args:
        group: With `per_step`.
        steps: Optimizer steps of the phase.
        seed: Of the phase.
    """

    def __init__(self, group: Group, steps: int, seed: int) -> None:
        assert group.per_step, "a group that every step holds rows of"
        self._group, self._steps, self._seed = group, steps, seed
        self._pass: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> list[int]:  # type: ignore[override]
        count, size = self._group.per_step or 0, len(self._group.rows)
        return [self._number(*divmod(place, size)) for place in range(step * count, (step + 1) * count)]

    def _number(self, turn: int, at: int) -> int:
        if self._pass[0] != turn:
            self._pass = (turn, shuffled(len(self._group.rows), self._seed, self._group.name, turn))
        return self._pass[1][at]


class Following(Sequence[list[int]]):
    """The rows of a group that go with others of a step.

    Args:
        numbers: Place among the shuffled rows to the number of the row of the group that goes with it.
        order: Of the shuffled rows.
    """

    def __init__(self, numbers: Mapping[int, int], order: Sequence[list[int]]) -> None:
        self._numbers, self._order = numbers, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, step: int) -> list[int]:  # type: ignore[override]
        return [self._numbers[place] for place in self._order[step] if place in self._numbers]


def inserted(epochs: Iterable[int], per_step: int, draw: Callable[[], Sequence[int]]) -> list[list[int]]:
    """So many rows of a group for every step, each epoch beginning with a new order of them.

    Where all were taken a new order is drawn at once. Source: GeRe's published batch insertion (spec section 6), but
    for places within a batch, on which no loss depends.

    Args:
        epochs: Steps of each epoch.
        per_step: Rows of the group in a step.
        draw: A new order of the group's rows.
    """
    plan = []
    for steps in epochs:
        waiting = list(draw())
        for _ in range(steps):
            taken: list[int] = []
            while len(taken) < per_step:
                taken.append(waiting.pop(0))
                waiting = waiting or list(draw())
            plan.append(taken)
    return plan


def epochs_of(order: Iterable[Sequence[int]]) -> list[int]:
    """Steps of each pass over rows: a new one begins with the first row that was there before."""
    epochs: list[int] = []
    known: set[int] = set()
    for step in order:
        if not epochs or not known.isdisjoint(step):
            epochs.append(0)
            known.clear()
        known.update(step)
        epochs[-1] += 1
    return epochs


def shuffled(count: int, seed: int, *purpose: str | int) -> list[int]:
    """The numbers below `count` in an order of their own for each purpose."""
    generator = torch.Generator().manual_seed(derive(seed, *purpose))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
