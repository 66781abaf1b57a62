"""Showing long work: what, how far, how long still.

The rooms below the command line only know the `Progress` protocol. On a terminal it is one live region (rich);
elsewhere plain lines, at most one every few seconds and step; with `--quiet` nothing. A log file gets every line
in all three cases.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
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


class TimeLeft:
    """Judges how long work still takes, from what was done of it in the last minutes.

    The rate is that of the last two thirds of the time looked at: a slow beginning is soon forgotten, and what comes
    in bursts (rows that are answered together) is averaged. Where the two thirds differ much, nothing is said rather
    than a figure that the next one belies.

    Args:
        now: When the work began or went on, in seconds.
        done: What was done before.
    """

    _LOOKS_BACK_S = 900.0
    _MOST_APART = 1.5  # chosen here: figures that follow each other differ by about as much at most

    def __init__(self, now: float, done: int = 0) -> None:
        self._times, self._done, self._rises = [now], [float(done)], 0

    def after(self, now: float, done: int, total: int | None) -> float | None:
        """Seconds left at a moment at which so much is done; None: not known."""
        times, known = self._times, self._done
        self._rises += done > known[-1]
        if len(times) > 1 and now - times[-2] < (now - times[0]) / 200:  # few enough points, however many ticks
            times[-1], known[-1] = now, float(done)
        else:
            times.append(now)
            known.append(float(done))
        while len(times) > 2 and times[1] <= now - self._LOOKS_BACK_S:
            del times[0], known[0]
        third = (now - times[0]) / 3
        if total is None or done >= total or self._rises < 2 or not third:
            return None
        at = [self._at(times[0] + part * third) for part in (1, 2)]
        before, lately = at[1] - at[0], done - at[1]
        if not 1 / self._MOST_APART <= lately / max(before, 1e-9) <= self._MOST_APART:
            return None
        return (total - done) * 2 * third / (before + lately)

    def _at(self, moment: float) -> float:
        """What was done at a moment, on a straight line between two points."""
        after = bisect_left(self._times, moment)
        (began, ended), (first, last) = self._times[after - 1 : after + 1], self._done[after - 1 : after + 1]
        return first + (last - first) * (moment - began) / (ended - began)


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
        left = TimeLeft(began)

        def tick(done: int, of: int | None = None, note: str = "", *, resumed: bool = False) -> None:
            nonlocal shown, total, left
            total = of if of is not None else total
            now = time.monotonic()
            if resumed:
                left = TimeLeft(now, done)
            seconds = left.after(now, done, total)
            if now - shown < self._interval_s or done == total:
                return
            shown = now
            self.say(f"  {what}: {_how_far(done, total, note, seconds)}")

        yield tick
        self.log(f"{what}: done in {time.monotonic() - began:.1f} s")


class RichProgress(LineProgress):
    """One live region on a terminal."""

    def __init__(self, log: Path | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self.console = Console(stderr=True)
        super().__init__(lambda line: self.console.print(line, highlight=False, markup=False), log)
        self._bars = Progress(
            # where the line is too long, words fold and figures stay whole
            TextColumn("{task.description}", markup=False, table_column=Column()),
            *([BarColumn()] if self.console.width >= _ROOM_FOR_BAR else []),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", style="progress.remaining", table_column=Column(no_wrap=True)),
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
        bar = self._bars.add_task(visible(what), total=total, note="", left=_clock(None))
        began = time.monotonic()
        left = TimeLeft(began)

        def tick(done: int, of: int | None = None, note: str = "", *, resumed: bool = False) -> None:
            nonlocal total, left
            total = of if of is not None else total
            now = time.monotonic()
            if resumed:
                left = TimeLeft(now, done)
            shown = _clock(left.after(now, done, total))
            self._bars.update(bar, completed=done, total=total, note=visible(note), left=shown)

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


def _how_far(done: int, total: int | None, note: str, left_s: float | None) -> str:
    parts = [f"{done}/{total}" if total else str(done)]
    if note:
        parts.append(note)
    if left_s is not None:
        parts.append(f"{left_s:.0f} s left")
    return ", ".join(parts)


def _clock(seconds: float | None) -> str:
    """`0:12:05`; dashes where it is not known."""
    if seconds is None:
        return "-:--:--"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
