"""vLLM as a server of the run's own: started in its own environment, on the loopback, and ended with the run.

It is another process with another PyTorch, so neither version nor memory of the two get into each other's way: what it
holds of a GPU is free once it has ended. It is told nothing of adapters but the highest rank; they are loaded by path.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from everlearn import leash
from everlearn.errors import MissingExtraError, ModelError, RunError
from everlearn.files import disk_error
from everlearn.generation.server import KEY
from everlearn.http import Server, ServerError
from everlearn.ordinary_files import shown
from everlearn.visible import visible

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of which vLLM takes one as the highest."""
_MOST_SAID = 300
_ASKED_S = 120
"""For what an interpreter says of itself."""
_POLL_S, _READY_S = 0.25, 10.0
_VERSION = (
    "from importlib.metadata import packages_distributions as of, version; print('vllm', version(of()['vllm'][0]))"
)
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}
_NOT_ITS_OWN = re.compile(
    "(PYTHON(PATH|HOME)|VIRTUAL_ENV|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)"
)
"""Variables of this process's own packages, and of a launch of several."""


@dataclass(frozen=True)
class Launch:
    """How vLLM is started.

    Attributes:
        python: The interpreter of its environment.
        folder: Of the base's files.
        name: What it is to call the base.
        dtype: Number format of the weights.
        seed: Of the run.
        context: Most tokens of prompt and completion.
        gpu_memory_utilization: Its share of the memory of a GPU.
        timeout_s: Until it must be ready.
        log: Gets what it prints; None: nothing does.
    """

    python: str
    folder: Path
    name: str
    dtype: str
    seed: int
    context: int
    gpu_memory_utilization: float
    timeout_s: float
    log: Path | None

    def command(self, port: int, rank: int) -> list[str]:
        """The command line.

        Args:
            port: To listen at.
            rank: The highest of adapters.
        """
        options: Mapping[str, object] = {
            "host": "127.0.0.1",
            "port": port,
            "served-model-name": self.name,
            "dtype": self.dtype,
            "seed": self.seed,
            "max-model-len": self.context,
            "gpu-memory-utilization": self.gpu_memory_utilization,
            "generation-config": "vllm",
            "max-loras": 1,
            "max-lora-rank": highest_rank(rank),
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        start = [self.python, "-m", "vllm.entrypoints.cli.main", "serve", str(self.folder.absolute())]
        return [*start, *flags, "--enable-lora"]


def highest_rank(rank: int) -> int:
    """The least of vLLM's ranks that an adapter of this rank fits.

    Raises:
        ModelError: there is none.
    """
    found = next((one for one in RANKS if one >= rank), None)
    if found is None:
        raise ModelError(
            f"vLLM takes adapters up to rank {RANKS[-1]}, and those of this run come to {rank}: lower "
            "model.lora.rank, or set generation.engine to here."
        )
    return found


def version_of(python: str) -> str:
    """The version of vLLM in an environment, which is not imported.

    Raises:
        MissingExtraError: there is none.
    """
    remedy = "install it there ('PYTHON -m pip install vllm'), or name the Python of an environment that has it"
    if os.name != "posix":
        raise MissingExtraError("generation.engine vllm: vLLM runs on Linux; set generation.engine to here or server.")
    try:
        asked = subprocess.run(
            [python, "-c", _VERSION],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASKED_S,
            stdin=subprocess.DEVNULL,
            env=_environment(),
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise MissingExtraError(
            f"generation.python {shown(python)} cannot be run ({_shortly(str(error))}): name the Python of an "
            "environment that has vLLM."
        ) from None
    found = re.search(r"^vllm (\S+)$", asked.stdout, re.MULTILINE)
    if asked.returncode or not found:
        raise MissingExtraError(f"generation.python {shown(python)} has no vLLM: {remedy}.")
    return found[1]


class Vllm:
    """The process, once it is started.

    Args:
        launch: How.

    Attributes:
        server: Its address and key, once it has been started.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self.server = Server("", KEY)
        self._process: subprocess.Popen[bytes] | None = None
        self._rank = 0

    def start(self, rank: int) -> bool:
        """Sees to it that it runs and takes adapters of this rank; returns whether it was started now.

        Raises:
            RunError: it ends at once, or is not ready in time.
        """
        if self._process is not None and self._process.poll() is None and rank <= self._rank:
            return False
        self.end()
        port, key = _free_port(), secrets.token_hex(16)
        command = self._launch.command(port, rank)
        self._rank = highest_rank(rank)
        self.server = Server(f"http://127.0.0.1:{port}/v1", KEY, secret=key)
        try:
            log = open(self._launch.log or os.devnull, "ab")  # noqa: SIM115
        except OSError as error:
            raise disk_error(self._launch.log or Path(os.devnull), error) from None
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", leash.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_environment(), "VLLM_API_KEY": key},
            )
        try:
            self._wait()
        except BaseException:
            self.end()
            raise
        return True

    def end(self) -> None:
        """Ends it, if it runs, and all that it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None, "its leash is our end of the pipe"
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(2 * leash.GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self) -> None:
        assert self._process is not None, "it was started"
        ends = time.monotonic() + self._launch.timeout_s
        while time.monotonic() < ends:
            if (status := self._process.poll()) is not None:
                raise RunError(f"vLLM has ended before it was ready (exit status {status}){self._told()}.")
            with suppress(ServerError):
                replace(self.server, timeout_s=_READY_S, attempts=1).models()
                return
            time.sleep(_POLL_S)
        raise RunError(
            f"vLLM was not ready within {self._launch.timeout_s:g} seconds (generation.start_timeout_s){self._told()}."
        )

    def _told(self) -> str:
        """Its last words."""
        if self._launch.log is None:
            return ""
        lines: Sequence[str] = []
        with suppress(OSError):
            lines = self._launch.log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if "Error" in line] or [line for line in lines if line.strip()]
        return f"; {self._launch.log} has what it printed" + (f", such as: {_shortly(said[-1])}" if said else "")


def _shortly(text: str) -> str:
    return visible(" ".join(text.split())[:_MOST_SAID].rstrip("."))


def _environment() -> dict[str, str]:
    """This process's, without what is about this process alone."""
    kept = {name: value for name, value in os.environ.items() if not _NOT_ITS_OWN.fullmatch(name)}
    return {**kept, **_ENVIRONMENT}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
