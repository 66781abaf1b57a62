"""Runs a command that ends with the process that started this one, however that one ends.

    python leash.py COMMAND ...

The starter holds the other end of this process's standard input. When that closes, because the starter let go of it
or was killed, the command and all processes that it has started are ended. Of the standard library alone, so that it
runs by its path.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

GRACE_S = 15
"""Seconds for the command to end by itself."""


def main() -> int:
    """Runs the command in a process group of its own; returns its exit status."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def wait_for_the_end() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        _end(child)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # which the starter gets as well
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=wait_for_the_end, daemon=True).start()
    status = child.wait()
    _signal(child, signal.SIGKILL)  # what it has left behind
    return status if status >= 0 else 128 - status


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal(child, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main())
