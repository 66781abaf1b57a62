"""The device that a run computes on: which one, its memory, and in which number format a training step computes.

bfloat16 pays where the processor multiplies it natively. Measured on an AMD EPYC with AVX512-BF16, one core, tokens/s
against float32 (steps of 150 to 3,800 tokens, attention in float32 in both): width 192 1.2 to 1.7 times, width 512
1.5 to 1.9 times. Trainable weights and the optimizer stay in float32.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from everlearn.errors import ModelError

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")
_NATIVE_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def choose_device(name: str) -> torch.device:
    """The torch device that a recipe names.

    Raises:
        ModelError: no such device here, or one of several but not the first.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.index:
            raise ModelError(
                f"model.device {name!r}: only the first device can be trained on: set it to {device.type}, and the "
                f"environment variable CUDA_VISIBLE_DEVICES to {device.index}."
            )
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"model.device {name!r} is not available on this machine: use auto, cpu or cuda.") from None
    return device


Precision = Literal["auto", "float32", "bfloat16", "float16"]


def autocast_format(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The format for autocast, or None for the weights' own.

    `auto` is never float16 here, for which losses must be scaled: whoever begins a run decides on it.
    """
    import torch

    if precision == "float16":
        return torch.float16
    is_wanted = precision == "bfloat16" or (precision == "auto" and has_native_bfloat16(device))
    return torch.bfloat16 if is_wanted else None


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 pays there: elsewhere it is emulated and slower. Of other kinds than CUDA and CPU: no."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _processor_has_bfloat16()


def needs_float16(device: torch.device) -> bool:
    """Whether float16 is the only format of two bytes that pays there: on CUDA GPUs before Ampere."""
    return device.type == "cuda" and not has_native_bfloat16(device)


def check_float16(key: str, device: torch.device) -> None:
    """Refuses it where it makes no sense.

    Raises:
        ModelError: names what does.
    """
    if device.type in ("cpu", "mps"):
        raise ModelError(
            f"{key}: float16 is for GPUs that have no bfloat16, and {device} is none: set it to auto, bfloat16 or "
            "float32."
        )


def free_bytes(device: torch.device) -> int:
    """What can still be taken."""
    import psutil
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    if device.type == "mps":
        return min(available, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    limit = _container_limit()
    return available if limit is None else min(available, max(0, limit - _container_use()))


def total_bytes(device: torch.device) -> int:
    """All there is, swap space included."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = int(psutil.virtual_memory().total + psutil.swap_memory().total)
    if device.type == "mps":
        return min(total, torch.mps.recommended_max_memory())
    return min(total, _container_limit() or total)


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


def _container_limit() -> int | None:
    """The container's limit (cgroup v2); None: there is none."""
    try:
        return int((_CGROUP / "memory.max").read_text())
    except (OSError, ValueError):
        return None


def _container_use() -> int:
    """What the container uses without page cache, which the kernel gives back; 0 where it does not tell."""
    try:
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return int((_CGROUP / "memory.current").read_text()) - int(statistics["file"])
    except (OSError, ValueError, KeyError):
        return 0
