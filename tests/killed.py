"""The one seam through which tests kill a run: where it shows how far it is.

Both kinds of run report to a `Progress` while they train, after what they have logged and before the checkpoint that
may follow, and whenever another long step begins or goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from everlearn.progress import LineProgress, Tick


class Killed(KeyboardInterrupt):
    """Stands for the end of the process: nothing catches it."""


class KilledAt(LineProgress):
    """Kills the run that it shows.

    Args:
        report: Number of the report that it dies in; 0: when the step opens.
        of: How the step's name begins whose reports count; None: all trainings, which say their loss.
        end: Instead of raising `Killed`.
    """

    def __init__(self, report: int, of: str | None = None, end: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._left, self._of, self._end = report, of, end

    def _seen(self) -> None:
        if self._left <= 0:
            if self._end is None:
                raise Killed
            self._end()

    @contextmanager
    def step(self, what: str, total: int | None = None) -> Iterator[Tick]:
        """A step in which the run may die."""
        is_meant = self._of is not None and what.startswith(self._of)
        if is_meant:
            self._seen()

        def tick(done: int, of: int | None = None, note: str = "", *, resumed: bool = False) -> None:
            if not resumed and (is_meant or (self._of is None and note.startswith("loss"))):
                self._left -= 1
                self._seen()

        yield tick


@contextmanager
def killed_at(report: int, of: str | None = None) -> Iterator[KilledAt]:
    """A block in which the run that gets the display dies; see `KilledAt`."""
    with pytest.raises(Killed):
        yield KilledAt(report, of)
