"""How commands end: one sentence and an exit code, whatever happened."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everlearn.cli import doctor
from everlearn.cli.main import main
from everlearn.errors import RunError, shortened


class Panic(BaseException):
    """As Rust's panics are, which no `except Exception` sees."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            ZeroDivisionError("division by zero\nmore"),
            1,
            "a fault of everlearn itself: ZeroDivisionError: division",
        ),
        (Panic("capacity overflow"), 1, "a fault of everlearn itself: Panic: capacity overflow"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested deeper than anything everlearn reads"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), 2, "cannot be used (File name too long)"),
        (PermissionError(errno.EACCES, "Permission denied", b"/root/\xff"), 2, "cannot be used (Permission denied)"),
        (OSError(errno.ENOSPC, "No space left", "/full/file"), 2, "the disk is full while writing /full/file"),
        (OSError("the hub said no"), 2, "the system refused something (the hub said no)"),
        (MemoryError(), 2, "memory ran out. Finished steps are kept"),
        (RunError("a sentence."), 2, "everlearn: a sentence."),
        (KeyboardInterrupt(), 130, "interrupted; finished steps are kept. The same command goes on."),
    ],
)
def test_whatever_ends_a_command_is_one_sentence(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["doctor"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.strip().count("\n") == 0
    assert len(said) < 1500
    if found := re.search(r"details: (\S+\.log)", said):
        assert type(error).__name__ in Path(found[1]).read_text(encoding="utf-8")
    assert bool(found) == (code == 1 or isinstance(error, RecursionError | OSError))


def test_without_room_for_the_details_the_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(["doctor"]) == 1
    assert "its details could not be written" in capsys.readouterr().err


def test_a_sentence_keeps_its_beginning_and_its_end() -> None:
    said = shortened(f"the value {'x' * 9000} is wrong: mend it.")
    assert said.startswith("the value xxx")
    assert said.endswith("xxx is wrong: mend it.")
    assert "(8,600 letters)" in said
    assert len(shortened("word " * 9000)) < 2100
    assert shortened("a short one.") == "a short one."


def test_handlers_are_as_before_when_a_command_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    main(["report", "nowhere"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


WAITING = """
import os, sys, time
from everlearn.cli import doctor
from everlearn.cli.main import main

def run(args):
    print("begun", flush=True)
    try:
        if os.fork() == 0:
            while True:
                time.sleep(60)
        while True:
            time.sleep(60)
    finally:
        print("ending", flush=True)
        {ending}

doctor.run = run
sys.exit(main(["doctor"]))
"""


# What a shell starts in the background ignores the interrupt, and so would its children, the tests' processes.
HEARD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""


def begun(ending: str = "pass") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HEARD + WAITING.format(ending=ending)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)  # until the other process is there
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_that_ends_a_command_has_the_sentence(number: signal.Signals) -> None:
    process = begun()
    os.killpg(process.pid, number)  # as a terminal sends it: to the processes that it has forked too
    _, said = process.communicate(timeout=60)
    assert said == "\neverlearn: interrupted; finished steps are kept. The same command goes on.\n"
    assert process.returncode == 128 + number


def test_a_second_signal_ends_at_once_and_without_a_traceback() -> None:
    process = begun(ending="time.sleep(60)")
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert said == "\neverlearn: interrupted; finished steps are kept. The same command goes on.\n"
    assert process.returncode == 130


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WAITING.format(ending="pass")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_a_command_says_within_a_second_or_two_that_it_has_begun(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "everlearn", "update", "embedded", "--plan", "--runs-dir", str(tmp_path / "runs")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    began = time.monotonic()
    assert process.stderr is not None
    assert process.stderr.readline() == "everlearn update: starting, the libraries take some seconds ...\n"
    assert time.monotonic() - began < 20  # loosely, for the machine may be busy: 0.2 s where it is not
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(timeout=60) == 143
    assert said == "\neverlearn: interrupted; finished steps are kept. The same command goes on.\n"
