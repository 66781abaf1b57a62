"""What another view of the model says of rows, where the view is the same in every step: several steps at once.

The rows of one step are few for a forward pass; on a small model most of its time goes to the calls. What such a view
says of rows does not depend on when it is asked, so a stretch of steps is looked at when its first one asks (measured
on the embedded base: less than half the time). A stretch is a function of the order of rows alone: a training that
goes on amid one looks at all of it once more, and computes what it would have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from everlearn.training.answer_loss import AnswerLoss
    from everlearn.training.influence import View, Wanted
    from everlearn.training.losses import Head
    from everlearn.training.rows import EncodedRow

STRETCH_TOKENS = {"cpu": 4096}
"""Most tokens of the rows of a stretch, by kind of device; others: 16,384. With more the calls cost little already."""


@dataclass(frozen=True)
class _Stretch:
    """States that predict the answer of each row, by its `id`, of so many steps."""

    steps: range
    states: dict[int, Tensor]
    head: Head | None


class LookAhead:
    """Looks at the rows of coming steps.

    Args:
        loss: Computes parts of batches.
        rows_of: This process's rows of a step.
        steps: Of the phase.
    """

    def __init__(self, loss: AnswerLoss, rows_of: Callable[[int], Sequence[EncodedRow]], steps: int) -> None:
        self._loss, self._rows_of, self._steps = loss, rows_of, steps
        self._most = STRETCH_TOKENS.get(loss.device.type, 16384)
        self._at_once = sys.maxsize
        self._known: dict[View, _Stretch] = {}

    def at_most(self, tokens: int) -> None:
        """No more tokens fit the memory at once."""
        self._at_once = min(self._at_once, tokens)

    def states(self, step: int, rows: Sequence[EncodedRow], view: View, wanted: Wanted) -> tuple[Tensor, Head | None]:
        """The states that predict the answers of the wanted ones among rows, one after the other, and the head.

        Args:
            step: Of the phase.
            rows: Some of the step's, packed.
            view: The same in every step, and always asked for with the same `wanted`.
            wanted: Which rows are looked at.
        """
        found = self._known.pop(view, None)
        if found is None or step not in found.steps:
            start = found.steps.stop if found is not None and found.steps.stop <= step else 0
            del found
            found = self._looked(view, wanted, self._stretch_of(step, wanted, start))
        self._known[view] = found
        return torch.cat([found.states[id(row)] for row in rows if wanted(row)]), found.head

    def _rows_at(self, step: int, wanted: Wanted) -> list[EncodedRow]:
        return [row for row in self._rows_of(step) if wanted(row) and self._loss.packs(row)]

    def _stretch_of(self, step: int, wanted: Wanted, start: int) -> range:
        """The stretch that a step belongs to, of those that follow each other from a start on."""
        tokens = 0
        for at in range(start, self._steps):
            own = sum(len(row.ids) for row in self._rows_at(at, wanted))
            if tokens + own > self._most and at > start:
                if at > step:
                    return range(start, at)
                start, tokens = at, 0
            tokens += own
        return range(start, self._steps)

    def _looked(self, view: View, wanted: Wanted, steps: range) -> _Stretch:
        rows = {id(row): row for step in steps for row in self._rows_at(step, wanted)}
        states: dict[int, Tensor] = {}
        head: Head | None = None
        for part in self._loss.micro_batches(list(rows.values()), self._at_once):
            assert not isinstance(part, list), "rows that are packed"
            passed, head = self._loss.look_again(part, view)
            own = passed.states.split([row.answer_count for row in part.rows])
            states |= {id(row): one for row, one in zip(part.rows, own, strict=True)}
        return _Stretch(steps, states, head)
