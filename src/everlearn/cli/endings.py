"""How a command ends that cannot go on: one sentence and an exit code, never a traceback.

2 where what was given, or the machine, must change; 1 for a fault of everlearn's own, whose traceback is kept in a
file; 128 and the signal's number where somebody stopped it.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from everlearn.errors import UserError, shortened
from everlearn.files import disk_error
from everlearn.visible import tell

_STOPPED = "\neverlearn: interrupted; finished steps are kept. The same command goes on."
_OUT_OF_MEMORY = (
    "Finished steps are kept: close other programs that use the device's memory and give the same command again, or "
    "take a smaller model, tuning: lora or dtype: bfloat16 under another --name."
)


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Has Ctrl-C, SIGTERM and SIGHUP raise `Stopped`; a second one ends the process at once.

    A signal that is ignored (as under nohup) stays so, and processes that were forked end as they would anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, is_stopping = os.getpid(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif is_stopping:
            with suppress(OSError):
                os.write(2, f"{_STOPPED}\n".encode())
            os._exit(128 + number)
        else:
            is_stopping = True
            raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        if not is_stopping:  # else the interpreter ends, in which a second signal would be a traceback again
            for number, handler in before.items():
                signal.signal(number, handler)


def ended_by(error: BaseException) -> int:
    """Says why a command ended, and returns its exit code."""
    if isinstance(error, BrokenPipeError):  # what read the output has ended, such as `| head`
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else the interpreter complains as it ends
        return 1
    said, code = _sentence(error)
    with suppress(OSError):  # the terminal may be gone
        tell(said, file=sys.stderr)
    return code


def _sentence(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UserError):
        return f"everlearn: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return _STOPPED, 128 + getattr(error, "number", signal.SIGINT)
    first = shortened(" ".join(str(error).strip().split("\n")[0].split()))
    if isinstance(error, MemoryError) or _is_of_the_device(error):
        return f"everlearn: {first or 'memory ran out'}{'' if first.endswith('.') else '.'} {_OUT_OF_MEMORY}", 2
    if isinstance(error, RecursionError):
        said = "something that was read is nested deeper than anything everlearn reads: mend what you gave"
        return f"everlearn: {said} ({_kept(error)}).", 2
    if isinstance(error, OSError):
        return f"everlearn: {_of_the_system(error, first)} ({_kept(error)}).", 2
    kind = type(error).__name__
    return f"everlearn: a fault of everlearn itself: {kind}: {first or 'no more is known'} ({_kept(error)}).", 1


def _of_the_system(error: OSError, first: str) -> str:
    if error.filename is None:
        return f"the system refused something ({first})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(disk_error(Path(os.fsdecode(error.filename)), error)).rstrip(".")
    reason = error.strerror or type(error).__name__
    return shortened(f"{os.fsdecode(error.filename)} cannot be used ({reason}): name another place, or mend this one")


def _is_of_the_device(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    from everlearn.models.batching import ran_out_of_memory

    return ran_out_of_memory(error)


def _kept(error: BaseException) -> str:
    """Writes the traceback into a file, and says where."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="everlearn-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"{' '.join(sys.argv)}\n")
            traceback.print_exception(error, file=file)
        return f"details: {file.name}"
    except OSError:
        return "its details could not be written to the folder of temporary files"
