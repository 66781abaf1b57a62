"""vLLM started for a run, up to the process: flags, waiting, ending, with a stand-in for its Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everlearn.errors import MissingExtraError, ModelError, RunError
from everlearn.generation.vllm import Launch, Vllm, highest_rank, version_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that stands in for the Python of vLLM's environment."""
    program = tmp_path / "python"
    stand_in = "import sys; sys.path.insert(0, {root!r}); from tests.generation.stand_in import main; sys.exit(main())"
    inner = stand_in.format(root=str(ROOT))
    program.write_text(f"#!{sys.executable}\n{inner}\n")
    program.chmod(0o755)
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes.json"))
    return str(program)


def launch(python: str, tmp_path: Path, **keys: object) -> Launch:
    given = {
        "folder": tmp_path / "base",
        "name": "org/base",
        "dtype": "bfloat16",
        "seed": 7,
        "context": 2048,
        "gpu_memory_utilization": 0.5,
        "timeout_s": 30.0,
        "log": tmp_path / "vllm.log",
    }
    return Launch(python, **{**given, **keys})  # type: ignore[arg-type]


def notes(tmp_path: Path) -> tuple[int, list[str], dict[str, str]]:
    pid, arguments, environment = json.loads((tmp_path / "notes.json").read_text())
    return pid, arguments, environment


def has_ended(pid: int) -> bool:
    for _ in range(200):
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_it_is_started_with_the_runs_settings_answers_and_ends(python: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("LOCAL_RANK", "0")
    process = Vllm(launch(python, tmp_path))
    assert process.start(8)
    pid, arguments, environment = notes(tmp_path)
    server = process.server
    port = server.url.removesuffix("/v1").rpartition(":")[2]
    assert arguments[1:] == [
        *("-m", "vllm.entrypoints.cli.main", "serve", str(tmp_path / "base")),
        *("--host", "127.0.0.1", "--port", port, "--served-model-name", "org/base", "--dtype", "bfloat16"),
        *("--seed", "7", "--max-model-len", "2048", "--gpu-memory-utilization", "0.5"),
        *("--generation-config", "vllm", "--max-loras", "1", "--max-lora-rank", "8", "--enable-lora"),
    ]
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert not {"PYTHONPATH", "LOCAL_RANK"} & set(environment), "the run's packages and launch are not vLLM's"
    assert environment["VLLM_API_KEY"] == server.secret, "others of the machine are kept out"
    assert server.models() == ["org/base"]
    assert not process.start(8), "it runs"
    assert process.start(9), "a higher rank needs another start"
    assert notes(tmp_path)[1][-2] == "16"
    assert has_ended(pid)
    process.end()
    assert has_ended(notes(tmp_path)[0])
    process.end()


def test_one_that_fails_is_told_with_its_last_words(python: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STAND_IN", "fails")
    with pytest.raises(
        RunError, match=r"ended before it was ready \(exit status 3\); .*vllm.log .* No available memory"
    ):
        Vllm(launch(python, tmp_path)).start(8)


def test_one_that_is_not_ready_in_time_is_told_and_ended(python: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STAND_IN", "hangs")
    with pytest.raises(RunError, match=r"not ready within 1.5 seconds \(generation.start_timeout_s\)"):
        Vllm(launch(python, tmp_path, timeout_s=1.5)).start(8)
    assert has_ended(notes(tmp_path)[0])


def test_it_ends_with_a_run_that_is_killed(python: str, tmp_path: Path) -> None:
    run = (
        "import sys, time; from pathlib import Path; "
        "from everlearn.generation.vllm import Launch, Vllm; place = Path(sys.argv[2]); "
        "Vllm(Launch(sys.argv[1], place, 'b', 'float32', 0, 64, 0.5, 30.0, None)).start(8); "
        "print('ready', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    killed = subprocess.Popen(
        [sys.executable, "-c", run, python, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"ready\n"
    pid = notes(tmp_path)[0]
    assert Path(f"/proc/{pid}").exists()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert has_ended(pid)


def test_the_version_is_asked_of_its_own_environment(python: str) -> None:
    assert version_of(python) == "9.9"
    with pytest.raises(MissingExtraError, match="has no vLLM: install it there"):
        version_of(sys.executable)
    with pytest.raises(MissingExtraError, match=r"generation.python /no/python cannot be run"):
        version_of("/no/python")


def test_the_highest_rank_is_one_that_vllm_knows() -> None:
    assert [highest_rank(rank) for rank in (1, 8, 9, 64, 512)] == [8, 8, 16, 64, 512]
    with pytest.raises(ModelError, match="up to rank 512, and those of this run come to 600"):
        highest_rank(600)
