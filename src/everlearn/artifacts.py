"""An artifact, the result of a step: its record, whether its files are as that says, and how it is removed.

An artifact is a folder whose `artifact.json` names its files. Only these are ever replaced or deleted: whatever else
somebody has put beside them stays. Links are never followed: a link in the place of a file is a fault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from everlearn.files import sha256_of

RECORD = "artifact.json"
FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME = 255  # bytes of one part of a path
_SUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """The finished result of one step: a folder that will not change, and the hash of all it depends on."""

    path: Path
    fingerprint: str


class StepRunner(Protocol):
    """Runs a step once: with the same inputs, the stored artifact is returned instead."""

    def __call__(
        self, name: str, inputs: Mapping[str, object], make: Callable[[Path], None], *, version: int = 1
    ) -> Artifact:
        """Makes or finds an artifact.

        Args:
            name: Path of the artifact below the stage's folder, such as `synthesis/raw`.
            inputs: JSON-serialisable description of all that the result depends on (settings, fingerprints of
                other artifacts, seeds).
            make: Writes the result's files into the folder it is given. After a kill it is called again with the
                same folder, in which files that it had finished (written by `everlearn.files.write_*`) still stand.
            version: Raised when the code of the step changes its results.
        """
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """What `artifact.json` holds.

    Attributes:
        fingerprint: Hash of all that the artifact depends on.
        seconds: How long it took to make.
        files: Path below the folder, to size in bytes and SHA-256 sum.
        generated_tokens: That models wrote for it.
        peak_memory_bytes: The most that was held meanwhile; 0: not known.
    """

    fingerprint: str
    seconds: float
    files: dict[str, tuple[int, str]]
    generated_tokens: int = 0
    peak_memory_bytes: int = 0


def read_record(folder: Path) -> Record | None:
    """The record of an artifact; None where there is none, or it is none that everlearn writes."""
    if not is_plain(folder, RECORD):
        return None
    try:
        stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in stored["files"].items()}
        used = [stored.get(name, 0) for name in ("generated_tokens", "peak_memory_bytes")]
        record = Record(stored["fingerprint"], stored["seconds"], files, *used)
        is_whole = (
            FINGERPRINT.fullmatch(record.fingerprint)
            and all(_is_amount(value) for value in (record.seconds, *used))
            and all(
                is_below(name) and name != RECORD and _is_amount(size) and _SUM.fullmatch(digest)
                for name, (size, digest) in files.items()
            )
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return record if is_whole else None


def is_below(name: str) -> bool:
    """Whether a recorded name is a path below its folder."""
    path = PurePosixPath(name)
    try:
        is_name = "\x00" not in name and all(len(part.encode()) <= _LONGEST_NAME for part in path.parts)
    except UnicodeEncodeError:
        return False
    return is_name and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_plain(folder: Path, name: str) -> bool:
    """Whether a regular file stands there, with no link on the way from the folder to it."""
    path = folder / name
    return path.is_file() and path.resolve() == folder.resolve() / name


def fault_of(folder: Path) -> str | None:
    """What is wrong with an artifact: the first file that is not as its record says; None when it is whole."""
    record = read_record(folder)
    if record is None:
        return f"{folder / RECORD} is corrupt"
    return next((fault for name in record.files if (fault := fault_in(folder, name, record))), None)


def fault_in(folder: Path, name: str, record: Record) -> str | None:
    """What is wrong with one file of an artifact; None when it is as its record says."""
    path = folder / name
    if name not in record.files:
        return f"{path} is no part of what was made (the {RECORD} beside it does not name it)"
    if not path.exists():
        return f"{path} is missing"
    if not is_plain(folder, name):
        return f"{path} is no regular file within its folder"
    size, digest = record.files[name]
    if path.stat().st_size != size or sha256_of(path) != digest:
        return f"{path} is corrupt (it is not what {RECORD} beside it records)"
    return None


def remove_artifact(folder: Path) -> None:
    """Deletes the files that the record names, the record last, and the folders that are empty then."""
    record = read_record(folder)
    remove_files(folder, [*(record.files if record else ()), RECORD])


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Deletes regular files below a folder by name, and the folders that are empty then; links stay."""
    emptied = set()
    for name in names:
        if is_plain(folder, name):
            (folder / name).unlink()
            emptied |= {parent for parent in (folder / name).parents if parent.is_relative_to(folder)}
    for parent in sorted(emptied, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            parent.rmdir()


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
