"""Which device is taken, what memory it has, and whether it multiplies bfloat16 natively."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from everlearn import devices
from everlearn.errors import ModelError

CPU = torch.device("cpu")


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cuda, mps in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        found.append(devices.choose_device("auto").type)
    assert found == ["cuda", "mps", "cpu"]
    with pytest.raises(ModelError, match=r"model\.device 'gpu' is not available on this machine"):
        devices.choose_device("gpu")


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor : 0\nflags : fpu avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("processor : 0\nFeatures : fp asimd bf16\n", True),
        ("flags : fpu avx2\n", False),
        ("flags : fpu nobf16\n", False),
        ("model name : bf16\n", False),
        (None, False),
    ],
)
def test_a_processor_is_asked_for_its_instruction_sets(
    text: str | None, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(devices, "_processor_has_bfloat16", devices._processor_has_bfloat16.__wrapped__)
    assert devices.has_native_bfloat16(CPU) is native
    assert not devices.has_native_bfloat16(torch.device("mps"))


def test_a_gpu_that_emulates_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(devices, "_processor_has_bfloat16", lambda: True)
    assert not devices.has_native_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert devices.has_native_bfloat16(torch.device("cuda"))


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    assert 0 < devices.free_bytes(CPU) <= psutil.virtual_memory().total <= devices.total_bytes(CPU)
    for name, text in (("max", "9000"), ("current", "5000"), ("stat", "anon 4000\nfile 1000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert devices.free_bytes(CPU) == 5000
    assert devices.total_bytes(CPU) == 9000
    (tmp_path / "memory.stat").unlink()
    assert devices.free_bytes(CPU) == 9000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_bytes(CPU) > 5000


def test_without_a_container_the_machines_memory_counts_with_its_swap_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=900, available=300))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=50))
    assert (devices.free_bytes(CPU), devices.total_bytes(CPU)) == (300, 950)
    for name, text in (("max", "100"), ("current", "170"), ("stat", "file 10\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert (devices.free_bytes(CPU), devices.total_bytes(CPU)) == (0, 100)
    (tmp_path / "memory.max").write_text("5000")
    assert (devices.free_bytes(CPU), devices.total_bytes(CPU)) == (300, 950)
    (tmp_path / "memory.max").write_text("250")
    (tmp_path / "memory.stat").write_text("anon 4\n")
    assert devices.free_bytes(CPU) == 250


def test_what_torch_keeps_of_a_gpu_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (10, 99)), ("memory_reserved", 7), ("memory_allocated", 3)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert devices.free_bytes(torch.device("cuda")) == 14
