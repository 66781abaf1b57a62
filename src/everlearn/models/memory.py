"""Memory of the device that a model is to live on: a GPU's own, else this machine's or container's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")


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
