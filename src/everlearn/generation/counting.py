"""What is shown while models write: one count for all calls that a piece of work is done in."""

from __future__ import annotations

import time

from everlearn.generation.protocol import GenerationProgress
from everlearn.progress import Tick


class Counted:
    """Turns the reports of an engine into ticks of one step of progress.

    An engine counts within a call; here what earlier calls have written is added, so that the count of tokens never
    falls back, and the rate is that of all.

    Args:
        tick: Of the step.
        total: Prompts in all, where the step was opened without.
    """

    def __init__(self, tick: Tick, total: int | None = None) -> None:
        self._tick = tick
        self._total = total
        self._tokens = 0
        self._began: float | None = None

    def call(self, done: int = 0) -> GenerationProgress:
        """The reports of the next call.

        Args:
            done: Prompts that are finished before it; those before the first call were finished by an earlier run.
        """
        before = self._tokens
        if self._began is None:
            self._began = time.monotonic()
            if done:
                self._tick(done, self._total, resumed=True)
        began = self._began

        def report(finished: int, total: int, tokens: int) -> None:
            self._tokens = before + tokens
            rate = self._tokens / max(time.monotonic() - began, 1e-9)
            note = f"{self._tokens:,} tokens written, {rate:,.{0 if rate >= 10 else 1}f}/s"
            self._tick(done + finished, self._total, note=note)

        return report
