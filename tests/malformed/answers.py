"""Gives a command in process and holds its answer to the rule: an exit code of 0 or 2, one sentence, in time.

A traceback, a fault of everlearn itself (exit code 1), a second line or a wait beyond the limit fails the test with
the command that did it.
"""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

from everlearn.cli.main import main
from everlearn.errors import UserError

SECONDS = 60
"""Far above what any command of these tests takes, for the machine may be busy."""
QUIET = ("run", "compare", "resume", "evaluate", "inspect", "synthesize", "update", "pretrain")


class Hung(BaseException):
    """A command did not end."""


@dataclass(frozen=True)
class Answer:
    """How a command ended.

    Attributes:
        is_refused: With a sentence and exit code 2 rather than with 0.
        said: On the error stream.
        shown: On the standard output.
    """

    is_refused: bool
    said: str
    shown: str


@contextmanager
def in_time(what: object, seconds: float = SECONDS) -> Iterator[None]:
    """Ends what hangs, also what waits for a file."""

    hung = []

    def stop(*_: object) -> None:
        hung.append(what)
        raise Hung  # whatever catches everything may catch this too

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        assert not hung, f"{what!s:.200} did not end in {seconds} seconds"


def refusal(what: object, call: Callable[[], object], seconds: float = SECONDS) -> str | None:
    """The sentence in which everlearn refuses something; None where it takes it. Any other error is a fault."""
    said = None
    with in_time(what, seconds):
        try:
            call()
        except UserError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"{what!s:.200} ends in {type(error).__name__}") from error
    assert said is None or (said and "\n" not in said), (what, said)
    return said


def answer(*arguments: str) -> Answer:
    """Gives a command, quietly where it can be quiet."""
    arguments = (*arguments, "--quiet") if arguments[0] in QUIET else arguments
    out, err = io.StringIO(), io.StringIO()
    with in_time(arguments), redirect_stdout(out), redirect_stderr(err):
        try:
            code: object = main(arguments)
        except SystemExit as ended:
            code = ended.code
    said = err.getvalue()
    assert code in (0, 2), (arguments, code, said)
    assert "details:" not in said, (arguments, said)  # the last resort of the command line
    assert "Traceback" not in said + out.getvalue(), (arguments, said)
    if code == 2 and (said or arguments[0] != "doctor"):  # doctor lists what it found, and ends with 2 if that stays
        sentence = said.removesuffix("\n").partition("\nTry ")[0]
        assert sentence.startswith("everlearn: "), (arguments, said)
        assert "\n" not in sentence, (arguments, said)
        assert len(sentence) < 2200, (arguments, len(sentence))
    return Answer(code == 2, said, out.getvalue())
