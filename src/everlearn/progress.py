"""Showing long work: what, how far, how long still.

The rooms below the command line only know the `Progress` protocol. On a terminal it is one live region (rich);
elsewhere plain lines, at most one every few seconds and step; with `--quiet` nothing. A log file gets every line
in all three cases.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from everlearn.files import append_text
from everlearn.visible import tell, visible

_ROOM_FOR_BAR = 100  # columns of a terminal: narrower ones are filled by words and figures
Tick = Callable[..., None]
"""`tick(done, total=None, note="", resumed=False)`: how far the step is; `note` is a short figure such as `loss 1.23`;
`resumed` says that so much was done in an earlier run, so that the time left is judged by the rest alone."""


class Progress(Protocol):
    """Where long work is shown."""

    def step(self, what: str, total: int | None = None) -> AbstractContextManager[Tick]:
        """Opens a step named `what`; the value is called as the work goes on."""
        ...

    def say(self, line: str) -> None:
        """Shows one line of text (a result, a remark)."""
        ...


class LineProgress:
    """Plain lines, for logs, pipes and tests.

    Args:
        write: Receives each line; None for silence.
        log: A file that receives every line with its time.
        interval_s: Least time between two lines of one step.
    """

    def __init__(
        self, write: Callable[[str], None] | None = None, log: Path | None = None, interval_s: float = 5.0
    ) -> None:
        self._write = write
        self._log = log
        self._interval_s = interval_s

    def say(self, line: str) -> None:
        """Shows and logs one line."""
        self.log(line)
        if self._write:
            self._write(visible(line))

    def log(self, line: str) -> None:
        """Logs one line without showing it; the log's folder is made for its first line.

        Raises:
            RunError: the disk is full or the file cannot be written to.
        """
        if self._log:
            append_text(self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(line)}\n")

    @contextmanager
    def step(self, what: str, total: int | None = None) -> Iterator[Tick]:
        """A step shown as lines `what: done/total, note, 12 s left`."""
        began = shown = time.monotonic()
        before = 0

        def tick(done: int, of: int | None = None, note: str = "", *, resumed: bool = False) -> None:
            nonlocal shown, total, before
            total = of if of is not None else total
            before = done if resumed else before
            now = time.monotonic()
            if now - shown < self._interval_s or done == total:
                return
            shown = now
            self.say(f"  {what}: {_how_far(done, total, note, now - began, before)}")

        yield tick
        self.log(f"{what}: done in {time.monotonic() - began:.1f} s")


class RichProgress(LineProgress):
    """One live region on a terminal."""

    def __init__(self, log: Path | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self.console = Console(stderr=True)
        super().__init__(lambda line: self.console.print(line, highlight=False, markup=False), log)
        self._bars = Progress(
            # where the line is too long, words fold and figures stay whole
            TextColumn("{task.description}", markup=False, table_column=Column()),
            *([BarColumn()] if self.console.width >= _ROOM_FOR_BAR else []),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column()),
            console=self.console,
            transient=True,
        )
        self._open = 0

    @contextmanager
    def step(self, what: str, total: int | None = None) -> Iterator[Tick]:
        """A bar with what, how far, how long still."""
        if not self._open:
            self._bars.start()
        self._open += 1
        bar = self._bars.add_task(visible(what), total=total, note="")
        began = time.monotonic()

        def tick(done: int, of: int | None = None, note: str = "", *, resumed: bool = False) -> None:
            if resumed:
                self._bars.reset(bar, completed=done)
            self._bars.update(bar, completed=done, total=of if of is not None else total, note=visible(note))

        try:
            yield tick
        finally:
            self._bars.remove_task(bar)
            self._open -= 1
            if not self._open:
                self._bars.stop()
        self.log(f"{what}: done in {time.monotonic() - began:.1f} s")


def make_progress(*, quiet: bool = False, log: Path | None = None) -> LineProgress:
    """The fitting display: nothing when quiet, a live region on a terminal, lines elsewhere."""
    if quiet:
        return LineProgress(None, log)
    if sys.stderr.isatty():
        return RichProgress(log)
    return LineProgress(lambda line: tell(line, file=sys.stderr), log)


def _how_far(done: int, total: int | None, note: str, elapsed_s: float, before: int) -> str:
    parts = [f"{done}/{total}" if total else str(done)]
    if note:
        parts.append(note)
    if total and done > before:
        parts.append(f"{elapsed_s * (total - done) / (done - before):.0f} s left")
    return ", ".join(parts)
