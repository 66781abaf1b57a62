"""A folder that runs share, made once: beside its place, then moved, so that a kill leaves nothing half made."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from everlearn.errors import RunError
from everlearn.files import disk_error, held, move_into, share_as

_YOUNG_SECONDS = 5  # of a folder that its process may not hold yet


def make_once(folder: Path, last: str, make: Callable[[Path], None], *, shared: Path) -> None:
    """Makes a folder unless it stands there; what killed processes had begun of it is deleted.

    Args:
        folder: Its place.
        last: The file whose presence says that it is whole.
        make: Writes the files into the folder that it is given.
        shared: The folder above whose rights it gets.

    Raises:
        RunError: the disk is full, or the place cannot be written to.
    """
    _remove_abandoned(folder)
    if (folder / last).exists():
        return
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with held(partial):
            make(partial)
        (partial / ".lock").unlink(missing_ok=True)
        share_as(shared, partial)
        move_into(partial, folder, last=last)
    except OSError as error:
        raise disk_error(partial, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Deletes what killed processes had written; living ones hold theirs."""
    for partial in folder.parent.glob(f".{folder.name}.*"):
        with suppress(RunError, OSError):
            if time.time() - partial.stat().st_mtime > _YOUNG_SECONDS:
                with held(partial):
                    shutil.rmtree(partial)
