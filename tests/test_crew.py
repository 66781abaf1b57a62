"""How several processes end: by one sentence, and never by waiting for each other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from everlearn.crew import Crew

SCRIPT = """
import os, signal, sys
import torch
from everlearn import crew
from everlearn.cli import main
from everlearn.errors import UserError

def work(order, own):
    rank = crew.crew().rank
    if order == "sums":
        assert crew.crew().gather(rank) == [0, 1]
        assert own == ("mine" if rank == 0 else None)
        return rank
    if order in ("all fail", f"{rank} fails"):
        raise UserError("the row is bad.")
    if order == f"{rank} is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.all_reduce(torch.ones(3))

def walk(args):
    assert crew.crew().together(work, "sums", "mine") == 0
    if sys.argv[1] == "the walk fails":
        raise UserError("the row is bad.")
    if sys.argv[1] != "nothing":
        crew.crew().together(work, sys.argv[1])

given = sys.argv[1:] if sys.argv[1] != "other arguments" else [os.environ["RANK"]]
main._run = lambda _: main._in_crew(walk, None, given)
sys.exit(main.main())
"""
"""Runs a walk of its own through the command's entrance, so that all of its ending is tested."""

BAD = "everlearn: the row is bad."
CASES = {
    "nothing": (0, 0, "", ""),
    "the walk fails": (2, 0, BAD, ""),
    "0 fails": (2, 1, BAD, ""),
    "1 fails": (2, 2, "everlearn: another of the 2 processes has ended", BAD),
    "all fail": (2, 1, BAD, ""),
    "1 is killed": (2, -signal.SIGKILL, "everlearn: another of the 2 processes has ended", ""),
    "0 is killed": (-signal.SIGKILL, 1, "", ""),
    "other arguments": (2, 1, "everlearn: process 1 of the launch was started with 1, and the first one with 0", ""),
}
"""What fails: exit codes and sentences of the first and of the second process."""


def _start(rank: int, port: int, what: str) -> subprocess.Popen[str]:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **{key: str(value) for key, value in places.items()}}
    command = [sys.executable, "-c", SCRIPT, what]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)


@pytest.mark.parametrize("what", CASES)
def test_processes_end_together_and_say_why_once(what: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [_start(rank, port, what) for rank in (0, 1)]
    said = [process.communicate(timeout=120)[1] for process in both]
    first, second, *sentences = CASES[what]
    assert [process.returncode for process in both] == [first, second], said
    for text, sentence in zip(said, sentences, strict=True):
        lines = [line for line in text.splitlines() if line.startswith("everlearn: ")]
        assert [line[: len(sentence)] for line in lines] == ([sentence] if sentence else []), text
        assert "Traceback" not in text


def test_one_process_alone_does_the_work_itself() -> None:
    assert Crew().together(lambda order, own: (order, own), 1, 2) == (1, 2)
    assert Crew().gather("value") == ["value"]
