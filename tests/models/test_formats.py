"""Which devices multiply bfloat16 natively."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everlearn.models import formats

CPU = torch.device("cpu")


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
    monkeypatch.setattr(formats, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(formats, "_processor_has_bfloat16", formats._processor_has_bfloat16.__wrapped__)
    assert formats.has_native_bfloat16(CPU) is native
    assert not formats.has_native_bfloat16(torch.device("mps"))


def test_a_gpu_that_emulates_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(formats, "_processor_has_bfloat16", lambda: True)
    assert not formats.has_native_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert formats.has_native_bfloat16(torch.device("cuda"))
