"""Several processes and real kills: two processes give one process's losses, sharded or not; SIGKILL loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from everlearn.updates.executor import execute
from tests.conftest import REPOSITORY
from tests.updates.test_executor import histories, releases, same_tensors
from tests.updates.tiny_runs import tiny_recipe, tiny_tree


def launch(folder: Path, count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch`; on CPUs its `--multi_gpu` starts the processes, its `--cpu` would need MPI."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "everlearn", "update", str(folder / "recipe.yaml"), "--quiet", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def write_recipe(folder: Path, **changes: object) -> Path:
    tree = tiny_tree(folder, **changes)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder


def losses(folder: Path) -> dict[str, list[float]]:
    return {name: [loss for _, loss, _ in rows] for name, rows in histories(folder / "runs" / "tiny").items()}


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_give_the_losses_of_one(tmp_path: Path, sharding: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    execute(tiny_recipe(one))
    done = launch(write_recipe(two, training={"sharding": sharding, "micro_batch_blocks": 3}), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Releases:") == 1
    manifest = json.loads((two / "runs" / "tiny" / "manifest.json").read_text())
    assert manifest["machine"]["processes"] == 2
    alone = losses(one)
    for name, values in losses(two).items():
        assert values == pytest.approx(alone[name], abs=1e-5), name
    for name, tensors in releases(one / "runs" / "tiny").items():
        found = releases(two / "runs" / "tiny")[name]
        assert tensors.keys() == found.keys()
        for key, tensor in tensors.items():
            assert (tensor - found[key]).abs().max() < 1e-3, (name, key)


def test_one_process_goes_on_with_what_two_have_left(tmp_path: Path) -> None:
    """Two sharded processes make the first two versions, one process the third."""
    one, two = tmp_path / "one", tmp_path / "two"
    execute(tiny_recipe(one))
    tree = tiny_tree(two, training={"sharding": "fsdp"})
    (two / "recipe.yaml").write_text(yaml.safe_dump({**tree, "versions": tree["versions"][:2]}))
    assert launch(two, 2).returncode == 0
    execute(tiny_recipe(two))
    alone, found = losses(one), losses(two)
    assert found.keys() == alone.keys()
    for name, values in found.items():
        assert values == pytest.approx(alone[name], abs=1e-5), name


def test_a_batch_that_cannot_be_divided_is_refused_once(tmp_path: Path) -> None:
    done = launch(write_recipe(tmp_path / "odd", training={"batch_blocks": 15}), 2)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("everlearn: ")]
    assert len(said) == 1
    assert "training.batch_blocks (15) cannot be divided over 2 processes" in said[0]


KILLED = """
import os, signal, sys
from pathlib import Path
from everlearn.updates.config import load_update_recipe
from everlearn.updates.executor import execute
from tests.killed import KilledAt

def end():
    if Path(sys.argv[1]).exists():
        os.kill(os.getpid(), signal.SIGKILL)

execute(load_update_recipe(sys.argv[2]), progress=KilledAt(1, end=end))
"""
"""Dies as soon as it reports a step after a folder was written."""


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"training": {"checkpoint_every": 2, "batch_blocks": 2}, "schedule": {"warm_up_steps": 4}}
    execute(tiny_recipe(whole, **changes))
    write_recipe(killed, **changes)
    command = ["update", str(killed / "recipe.yaml"), "--quiet"]
    run = killed / "runs" / "tiny"
    for place in ("segments/m1a/checkpoint", "states/m1b", "segments/m2b/checkpoint"):
        script = [sys.executable, "-c", KILLED, str(run / place), command[1]]
        died = subprocess.run(script, capture_output=True, cwd=REPOSITORY, check=False)
        assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    last = subprocess.run([sys.executable, "-m", "everlearn", *command], capture_output=True, check=False)
    assert last.returncode == 0
    assert histories(whole / "runs" / "tiny") == histories(run)
    for name, tensors in releases(whole / "runs" / "tiny").items():
        assert same_tensors(tensors, releases(run)[name])
    assert json.loads((run / "manifest.json").read_text())["status"] == "complete"
