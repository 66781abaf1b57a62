"""Whether a device multiplies bfloat16 natively."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_NATIVE_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 pays there: elsewhere it is emulated and slower. Of other kinds than CUDA and CPU: no."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _processor_has_bfloat16()


@cache
def _processor_has_bfloat16() -> bool:
    """Whether Linux lists a bfloat16 instruction set; on other systems: no."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return bool(_NATIVE_FLAGS & set(line.split()))
    return False
