"""What this process uses: the tokens that it writes, and the most memory that it holds.

A step of the store tells what it used as a difference, so whatever writes or computes needs not know in which step it
is. Memory is that of the GPU once one is used, else of the whole process, whose peak Linux tells from a moment on,
Windows since the process began, and other systems not (there it is what is held at the end).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc/self")
_written = 0


def wrote(tokens: int) -> None:
    """Counts tokens that a model has written."""
    global _written
    _written += tokens


def written() -> int:
    """Tokens written since the process began."""
    return _written


def restart_peak() -> None:
    """The peak counts from here on, where the system can."""
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            (_PROC / "clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory held since the restart."""
    if cuda := _cuda():
        return int(cuda.max_memory_allocated())
    with suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import psutil

    held = psutil.Process().memory_info()
    return int(getattr(held, "peak_wset", held.rss))


def waited_s() -> float | None:
    """Seconds that the calling thread has waited for a processor which other work had; None where no one counts it."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return None


def _cuda():  # type: ignore[no-untyped-def]
    """torch's GPU where this process uses one."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
