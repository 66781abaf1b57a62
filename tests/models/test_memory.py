from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from everlearn.errors import ModelError
from everlearn.models import loading, memory
from everlearn.recipe import ModelConfig

CPU = torch.device("cpu")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total <= memory.total_bytes(CPU)
    for name, text in (("max", "9000"), ("current", "5000"), ("stat", "anon 4000\nfile 1000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.free_bytes(CPU) == 5000
    assert memory.total_bytes(CPU) == 9000
    (tmp_path / "memory.stat").unlink()
    assert memory.free_bytes(CPU) == 9000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) > 5000


def test_without_a_container_the_machines_memory_counts_with_its_swap_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=900, available=300))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=50))
    assert (memory.free_bytes(CPU), memory.total_bytes(CPU)) == (300, 950)
    for name, text in (("max", "100"), ("current", "170"), ("stat", "file 10\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert (memory.free_bytes(CPU), memory.total_bytes(CPU)) == (0, 100)
    (tmp_path / "memory.max").write_text("5000")
    assert (memory.free_bytes(CPU), memory.total_bytes(CPU)) == (300, 950)
    (tmp_path / "memory.max").write_text("250")
    (tmp_path / "memory.stat").write_text("anon 4\n")
    assert memory.free_bytes(CPU) == 250


def test_what_torch_keeps_of_a_gpu_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (10, 99)), ("memory_reserved", 7), ("memory_allocated", 3)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_bytes(torch.device("cuda")) == 14


def test_a_model_beyond_the_memory_is_refused_with_what_takes_less(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = loading.load_model(ModelConfig(base=str(tiny_model), tuning="full")).model.num_parameters()
    full = ModelConfig(base=str(tiny_model), tuning="full")
    lora = ModelConfig(base=str(tiny_model), dtype="float32")
    monkeypatch.setattr(loading, "total_bytes", lambda device: weights * 4)
    for config in (full, lora):
        loading.check_model(config)
    loading.check_model(lora, trains=True)
    with pytest.raises(ModelError, match=r"full tuning of 0\.0 billion weights in float32 takes .* set model\.tuning"):
        loading.check_model(full, trains=True)
    monkeypatch.setattr(loading, "total_bytes", lambda device: weights * 4 - 1)
    with pytest.raises(ModelError, match=r"a model of 0\.0 .* cpu has 0: set model\.dtype to bfloat16, or choose"):
        loading.check_model(lora)
    loading.check_model(lora.model_copy(update={"dtype": "bfloat16"}))
    monkeypatch.setattr(loading, "total_bytes", lambda device: weights * 2 - 1)
    with pytest.raises(ModelError, match=r"in bfloat16 .* cpu has 0: choose a smaller model\.$"):
        loading.check_model(lora.model_copy(update={"dtype": "bfloat16"}))
