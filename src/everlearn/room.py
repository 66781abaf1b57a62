"""Whether the disk has room for what a run is going to keep: refused is what is certain not to fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from everlearn.errors import RunError


def free_on_disk(place: Path) -> int:
    """Free bytes of the file system on which a folder stands, or is going to stand."""
    return shutil.disk_usage(_standing(place)).free


def refuse_without_room(folder: Path, cache: Path, needed: int) -> None:
    """Refuses a run, or comparison, that cannot fit on its disk, before anything is computed.

    What stands in the folder or in the cache may be what the run would make, so it is taken off.

    Args:
        folder: Of the run.
        cache: Of the artifacts; where it stands on another file system, each of them gets all.
        needed: Bytes that the run takes at least.

    Raises:
        RunError: names the folder, what is needed and what is free.
    """
    places = {_standing(place).stat().st_dev: place for place in (cache, folder)}
    for place in places.values():
        free = free_on_disk(place)
        if needed > free and needed - _kept_in(folder, cache) > free:
            raise RunError(
                f"{place}: what this keeps takes at least {needed:,} bytes, and {free:,} are free on its disk: free "
                "some space, name a --runs-dir (and --cache-dir) on another disk, or take a smaller model or adapters."
            )


def _kept_in(*folders: Path) -> int:
    """Bytes of all weights and states below some folders, each file once."""
    found = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                if name.endswith(".safetensors"):
                    about = os.lstat(os.path.join(place, name))
                    found[about.st_dev, about.st_ino] = about.st_size
    return sum(found.values())


def _standing(place: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    place = place.absolute()
    return next(path for path in (place, *place.parents) if path.exists())
