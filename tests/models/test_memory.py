from __future__ import annotations

from pathlib import Path

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
