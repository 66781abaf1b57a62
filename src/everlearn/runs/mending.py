"""Corrupt artifacts: found, listed with what would be deleted of them and why, and deleted once the user agrees.

Nothing is deleted but files that a record of everlearn names, in the places where everlearn puts artifacts: `xx/<32
hex>` of a cache whose name is the recorded fingerprint; below `stages`, or as `.own/<32 hex>`, of a run folder. Where
a record cannot be read, it alone goes from a marked cache (what it named is replaced when the artifact is made again),
and in a run the files that the manifest names for that place. No link is followed. A cache outside the given folder,
which only a manifest names (a run folder from somebody else can name any), is looked at only if it is marked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from everlearn.artifacts import FINGERPRINT, RECORD, fault_of, is_below, is_plain, read_record, remove_files
from everlearn.errors import RunError
from everlearn.files import read_json, sha256_of
from everlearn.recipe_paths import found_path
from everlearn.run_folder import kind_of, refuse_links
from everlearn.store import MARK

_SHARD = re.compile(r"[0-9a-f]{2}")
_DEPTH = 2  # from a folder of runs over a comparison to its runs


@dataclass(frozen=True, slots=True)
class Damage:
    """A corrupt artifact.

    Attributes:
        folder: Of the artifact.
        fault: What is wrong with it.
        names: The files that would be deleted, below the folder.
        size: Their bytes.
        kept: Files in the folder that no record names; they stay.
    """

    folder: Path
    fault: str
    names: tuple[str, ...]
    size: int
    kept: tuple[str, ...]


@dataclass(slots=True)
class Findings:
    """What stands in a cache or in run folders.

    Attributes:
        places: Run folders and caches that were looked at.
        artifacts: How many artifacts were compared with their records.
        damages: The corrupt ones.
        remarks: What was not looked at, or is left alone, and why.
    """

    places: list[Path] = field(default_factory=list)
    artifacts: int = 0
    damages: list[Damage] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def examine(folder: Path) -> Findings:
    """Compares all artifacts of a cache, or of run folders and their caches, with their records; deletes nothing.

    Raises:
        RunError: the folder is a link, or there is nothing of everlearn's in it.
    """
    refuse_links(folder)
    found = Findings()
    caches: dict[Path, None] = {folder: None} if _is_cache(folder) else {}
    for run in _runs_in(folder, _DEPTH):
        found.places.append(run)
        manifest = _manifest(run, found)
        _examine_run(run, manifest, found)
        named = str(manifest.get("cache_dir") or run.parent / ".cache")
        cache = Path(found_path(named, run, manifest.get("folder")))
        if not cache.is_dir() or cache.is_symlink() or cache.resolve() == folder.resolve():
            continue
        if cache.resolve().is_relative_to(folder.resolve()) or (cache / MARK).is_file():
            caches[cache] = None
        else:
            found.remarks.append(
                f"{cache}, the cache that {run / 'manifest.json'} names, carries no mark of everlearn and is not "
                f"looked at: if it is yours, 'everlearn doctor --cache {cache}' does."
            )
    for cache in caches:
        found.places.append(cache)
        _examine_cache(cache, found)
    if not found.places:
        raise RunError(f"{folder} holds nothing of everlearn's: give the cache (runs/.cache) or a run folder.")
    found.remarks = list(dict.fromkeys(found.remarks))
    return found


def remove(damages: list[Damage]) -> list[Damage]:
    """Deletes the files of artifacts that are still corrupt; returns those.

    Raises:
        RunError: a file cannot be deleted.
    """
    removed = []
    for damage in damages:
        if not fault_of(damage.folder):  # made again meanwhile
            continue
        try:
            remove_files(damage.folder, damage.names)
        except OSError as error:
            raise RunError(f"cannot delete {error.filename} ({error.strerror}): give everlearn the rights.") from None
        removed.append(damage)
    return removed


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    """The run folder itself, or those below it."""
    if (folder / "manifest.json").is_file() or (folder / "recipe.yaml").is_file():
        with suppress(RunError):
            if kind_of(folder):
                yield folder
        return
    if depth:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                yield from _runs_in(path, depth - 1)


def _manifest(run: Path, found: Findings) -> dict[str, object]:
    with suppress(RunError):
        value = read_json(run / "manifest.json")
        if isinstance(value, dict):
            return value
        found.remarks.append(f"{run / 'manifest.json'} is corrupt: delete it and run 'everlearn resume {run}'.")
    return {}


def _examine_run(run: Path, manifest: dict[str, object], found: Findings) -> None:
    try:
        refuse_links(run)
    except RunError as error:
        found.remarks.append(str(error))
        return
    steps = manifest.get("steps")
    steps = steps if isinstance(steps, dict) else {}
    for record in sorted((run / "stages").rglob(RECORD)):
        place = record.parent.relative_to(run).as_posix()
        step = steps.get(place)
        files = step.get("files") if isinstance(step, dict) else None
        names = [RECORD, *(str(name) for name in files)] if isinstance(files, dict) else []
        _examine_artifact(record.parent, names, found)
    vouched = manifest.get("files")
    for name, digest in vouched.items() if isinstance(vouched, dict) else ():
        if is_below(str(name)) and not (is_plain(run, str(name)) and sha256_of(run / str(name)) == digest):
            what = "is not as everlearn wrote it" if (run / str(name)).exists() else "is missing"
            remedy = "take the change back" if name == "recipe.yaml" else f"'everlearn resume {run}' writes it again"
            found.remarks.append(f"{run / str(name)} {what}: {remedy}.")
    for record in sorted((run / ".own").glob(f"*/{RECORD}")):
        if FINGERPRINT.fullmatch(record.parent.name):
            _examine_artifact(record.parent, [RECORD], found, named=record.parent.name)


def _examine_cache(cache: Path, found: Findings) -> None:
    is_marked = (cache / MARK).is_file()
    for folder in _cached(cache):
        if (folder / RECORD).exists():
            _examine_artifact(folder, [RECORD] if is_marked else [], found, named=folder.name)


def _examine_artifact(folder: Path, unread: list[str], found: Findings, named: str = "") -> None:
    """Looks at one artifact.

    Args:
        folder: Of the artifact.
        unread: What to delete where its record cannot be read; nothing where no other sign says that it is ours.
        found: Gets the result.
        named: The fingerprint that the folder's name gives.
    """
    found.artifacts += 1
    record, fault = read_record(folder), fault_of(folder)
    if record is not None and named and record.fingerprint != named:
        record, fault = None, f"{folder / RECORD} is of another artifact"
    if fault is None:
        return
    if record is None and not unread:
        found.remarks.append(
            f"{folder / RECORD} is no record of everlearn, and no other sign says that the folder is everlearn's: "
            "it is left alone."
        )
        return
    names = [*record.files, RECORD] if record else unread
    names = [name for name in names if is_below(name) and is_plain(folder, name)]
    size = sum((folder / name).stat().st_size for name in names)
    standing = (Path(place, name) for place, _, files in os.walk(folder) for name in files)
    kept = sorted(path.relative_to(folder).as_posix() for path in standing)
    found.damages.append(Damage(folder, fault, tuple(names), size, tuple(name for name in kept if name not in names)))


def _is_cache(folder: Path) -> bool:
    if (folder / MARK).is_file():
        return True
    records = ((path.name, read_record(path)) for path in _cached(folder))
    return any(record is not None and record.fingerprint == name for name, record in records)


def _cached(cache: Path) -> Iterator[Path]:
    """The folders in the places of a cache's layout."""
    for shard in sorted(cache.iterdir()):
        if _SHARD.fullmatch(shard.name) and shard.is_dir() and not shard.is_symlink():
            for folder in sorted(shard.iterdir()):
                is_place = FINGERPRINT.fullmatch(folder.name) and folder.name.startswith(shard.name)
                if is_place and folder.is_dir() and not folder.is_symlink():
                    yield folder
