"""Runs compute on another device than the CPU, and no step leaves anything behind on the CPU.

The device is a stand-in (`stand_in.cpp`), since no machine without an accelerator has a real one. It shows that
tensors are made and moved where they belong, not what a GPU's own kernels compute: a machine with one runs all on
it too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from everlearn.files import read_json, read_jsonl
from tests.device.everything import CASES
from tests.device.stand_in import NAME

HERE = Path(__file__).parent


def build(compiler: str, library: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    subprocess.run(
        [
            *(compiler, "-std=c++20", "-shared", "-fPIC", "-O0", "-o", str(library), str(HERE / "stand_in.cpp")),
            *(f"-I{torch_folder / place}" for place in ("include", "include/torch/csrc/api/include")),
            *(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
        ],
        check=True,
    )


def losses_of(run: Path) -> list[list[float]]:
    """Of each stage, step by step."""
    stages = [stage["name"] for stage in read_json(run / "manifest.json")["stages"]]
    histories = [read_jsonl(run / "stages" / stage / "training" / "history.jsonl") for stage in stages]
    return [[row["loss"] for row in history] for history in histories]


@pytest.mark.parametrize("device", [NAME, "cuda"])
def test_every_step_works_on_another_device_and_learns_what_it_learns_on_the_cpu(tmp_path: Path, device: str) -> None:
    command, environment = [sys.executable, "-m", "tests.device.everything", device, str(tmp_path)], {**os.environ}
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA GPU")
    else:
        compiler = shutil.which("g++")
        if compiler is None or sys.platform != "linux":
            pytest.skip("no g++ on Linux to build the device that stands in for a GPU")
        build(compiler, tmp_path / "stand_in.so")
        command.append(str(tmp_path / "stand_in.so"))
        environment["TORCHDYNAMO_DISABLE"] = "1"  # else each step of the 8-bit optimizer is compiled, for a minute
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tolerance = 0.2 if device == "cuda" else 1e-3  # a GPU draws other dropout masks
    for case in CASES:
        (expected, *_), (first, *others) = losses_of(tmp_path / "cpu" / case), losses_of(tmp_path / device / case)
        assert first == pytest.approx(expected, rel=tolerance), case
        assert len(others) == 1, case
        assert (tmp_path / device / case / "matrix.json").is_file(), case
        summaries = list((tmp_path / device / case).glob("stages/*/training/summary.json"))
        assert [read_json(path)["packed"] for path in summaries] == [True, True], case
    rehearsed = (tmp_path / device / "ssr").glob("stages/*/rehearsal.jsonl")
    assert {row["origin"] for path in rehearsed for row in read_jsonl(path)} == {"synthetic"}
    versions = [read_json(tmp_path / at / "runs" / "tiny" / "quality.json")["own"] for at in ("cpu", device)]
    assert versions[1] == pytest.approx(versions[0], rel=tolerance)
