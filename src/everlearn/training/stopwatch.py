"""How long what methods add to a training takes, by name.

On a GPU work is only queued when a function returns, so moments are marked in its queue and read when training ends;
nothing waits for it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.cuda import Event


class Stopwatch:
    """Adds up seconds by name.

    Args:
        device: That computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, Event, Event]] = []

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Counts the block for a name."""
        if self._is_cuda:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            yield
            last.record()
            self._marks.append((name, first, last))
            if len(self._marks) >= 4096:  # those that are long past
                self._read(self._marks[:2048])
                del self._marks[:2048]
        else:
            began = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - began

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what was counted before a training was broken off."""
        for name, value in seconds.items():
            self._seconds[name] += value

    def seconds(self) -> dict[str, float]:
        """By name, in the order of the first use; waits for the device."""
        self._read(self._marks)
        self._marks = []
        return dict(self._seconds)

    def _read(self, marks: list[tuple[str, Event, Event]]) -> None:
        for name, first, last in marks:
            last.synchronize()
            self._seconds[name] += first.elapsed_time(last) / 1000
