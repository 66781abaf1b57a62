"""The run folder: every step's result is a folder of plain files that appears whole or not at all.

A step's fingerprint hashes its name and all that its result depends on. Its files are made in
`RUN/.partial/<fingerprint>` (which survives a kill, so that a step can go on from what it had finished), then moved
into the shared cache with their sizes and SHA-256 sums in `artifact.json`, then hard-linked into the run folder.
So a finished artifact is never made twice, in this run or in another one that shares the cache, and a kill at any
moment leaves either no artifact or a whole one. `manifest.json` names what this run has finished.
The seconds of a step are its own: those of the steps that it runs itself are theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError

from everlearn.data.instance import fingerprint_of
from everlearn.errors import RunError
from everlearn.files import (
    disk_error,
    make_folder,
    read_json,
    read_mapping,
    remove_unfinished,
    sha256_of,
    write_error,
    write_json,
)
from everlearn.methods.base import Artifact, StepRunner

RECORD = "artifact.json"


class RunStore:
    """Steps of one run folder over a shared cache.

    Args:
        folder: The run folder; made if absent.
        cache: Folder of artifacts shared by runs.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.cache = cache
        self._verified: set[Path] = set()
        self._inner_seconds = 0.0  # of the steps that the step now being made has run itself
        make_folder(folder)
        make_folder(cache)
        self.manifest: dict[str, object] = {}
        if self.manifest_path.exists():
            loaded = read_json(self.manifest_path)
            if not isinstance(loaded, dict) or not isinstance(loaded.get("steps", {}), dict):
                raise RunError(f"{self.manifest_path} is corrupt: delete it and run 'everlearn resume'.")
            self.manifest = loaded
        self.manifest["cache_dir"] = str(cache.resolve())

    @property
    def manifest_path(self) -> Path:
        """Where the manifest stands."""
        return self.folder / "manifest.json"

    def update_manifest(self, **values: object) -> None:
        """Sets top-level manifest entries and writes the file."""
        self.manifest.update(values)
        write_json(self.manifest_path, self.manifest)

    def steps_below(self, stage: str) -> StepRunner:
        """A step runner whose artifacts stand under `stages/<stage>`."""

        def run(
            name: str, inputs: Mapping[str, object], make: Callable[[Path], None], *, version: int = 1
        ) -> Artifact:
            return self.step(f"stages/{stage}/{name}", name, inputs, make, version=version)

        return run

    def step(
        self,
        place: str,
        kind: str,
        inputs: Mapping[str, object],
        make: Callable[[Path], None],
        *,
        version: int = 1,
        shared: bool = True,
    ) -> Artifact:
        """Makes or finds the artifact of a step; see `methods.base.StepRunner`.

        Args:
            place: Path of the artifact below the run folder.
            kind: What the step is, part of the fingerprint (two kinds never share).
            inputs: All that the result depends on.
            make: Writes the files.
            version: Of the step's code.
            shared: Whether other runs may use the artifact, and this run theirs.

        Raises:
            RunError: a stored artifact is corrupt, or the disk is full.
        """
        fingerprint = fingerprint_of({"kind": kind, "version": version, "inputs": dict(inputs)})
        began, outer_seconds = time.monotonic(), self._inner_seconds
        self._inner_seconds = 0.0
        try:
            return self._find_or_make(place, fingerprint, kind, make, shared=shared)
        finally:
            self._inner_seconds = outer_seconds + time.monotonic() - began

    def _find_or_make(
        self, place: str, fingerprint: str, kind: str, make: Callable[[Path], None], *, shared: bool
    ) -> Artifact:
        target = self.folder / place
        if self._holds(target, fingerprint):
            self._note(place, fingerprint, target, reused=True)
            return Artifact(target, fingerprint)
        stored = self._cached(fingerprint) if shared else self.folder / ".own" / fingerprint
        reused = (stored / RECORD).exists()
        if not reused:
            self._make(fingerprint, kind, make, stored)
        self._check(stored)
        link_tree(stored, target)
        self._note(place, fingerprint, target, reused=reused)
        return Artifact(target, fingerprint)

    def _cached(self, fingerprint: str) -> Path:
        return self.cache / fingerprint[:2] / fingerprint

    def _holds(self, target: Path, fingerprint: str) -> bool:
        if not (target / RECORD).exists():
            return False
        self._check(target)
        return fingerprint_in(target) == fingerprint

    def _check(self, folder: Path) -> None:
        """Compares an artifact's files with its record, once per process, and not when it has just made them."""
        if folder in self._verified:
            return
        fault = fault_of(folder)
        if fault:
            raise RunError(
                f"{fault}: run 'everlearn doctor --cache {self.folder}', which removes what is corrupt, and then the "
                "same command or 'everlearn resume', which makes it again and keeps everything else."
            )
        self._verified.add(folder)

    def _make(self, fingerprint: str, kind: str, make: Callable[[Path], None], stored: Path) -> None:
        partial = self.folder / ".partial" / fingerprint
        began = time.monotonic()
        try:
            partial.mkdir(parents=True, exist_ok=True)
            if fault_of(partial):  # else it was made whole, and killed before it was moved
                (partial / RECORD).unlink(missing_ok=True)
                for unfinished in [path for path in partial.rglob(".*") if path.is_file()]:
                    unfinished.unlink()  # a write that was killed before its rename
                make(partial)
                files = {
                    path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                    for path in sorted(partial.rglob("*"))
                    if path.is_file()
                }
                write_json(
                    partial / RECORD,
                    {
                        "fingerprint": fingerprint,
                        "kind": kind,
                        "seconds": round(time.monotonic() - began - self._inner_seconds, 3),
                        "files": files,
                    },
                )
            stored.parent.mkdir(parents=True, exist_ok=True)
            if stored.exists():  # Another run has just made the same; a folder without record is a broken copy.
                shutil.rmtree(partial if (stored / RECORD).exists() else stored)
            if partial.exists():
                _move(partial, stored)
                self._verified.add(stored)
        except (OSError, SafetensorError) as error:
            raise write_error(partial, error) from None

    def _note(self, place: str, fingerprint: str, target: Path, *, reused: bool) -> None:
        steps = self.manifest.setdefault("steps", {})
        assert isinstance(steps, dict), "the manifest's steps are a mapping"
        known = steps.get(place)
        if not (isinstance(known, dict) and known.get("fingerprint") == fingerprint):
            record = read_json(target / RECORD)
            assert isinstance(record, dict), "an artifact record is a mapping"
            steps[place] = {
                "fingerprint": fingerprint,
                "seconds": record["seconds"],
                "reused": reused,
                "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "files": {name: entry["bytes"] for name, entry in record["files"].items()},
            }
            write_json(self.manifest_path, self.manifest)

    def tidy(self) -> None:
        """Removes what unfinished attempts left behind; called when a run is complete."""
        with suppress(OSError):
            remove_unfinished(self.folder)
            shutil.rmtree(self.folder / ".partial")


def fault_of(folder: Path) -> str | None:
    """What is wrong with an artifact: the first file that is not as its record says; None when it is whole."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in record["files"].items()}
        is_record = isinstance(record["fingerprint"], str) and isinstance(record["seconds"], float | int)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        is_record = False
    if not is_record:
        return f"{folder / RECORD} is corrupt"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size or sha256_of(path) != digest:
            return f"{path} is corrupt (it is not what {RECORD} beside it records)"
    return None


def fingerprint_in(folder: Path) -> str:
    """The fingerprint of a whole artifact."""
    return str(read_mapping(folder / RECORD)["fingerprint"])


def remove_corrupt(folder: Path) -> list[Path]:
    """Deletes the corrupt artifacts of a cache, or of run folders and the caches that they name.

    Returns:
        Their folders.
    """
    removed = []
    for place in [folder, *sorted(_caches_of(folder))]:
        for record in sorted(place.rglob(RECORD)):
            if fault_of(record.parent):
                shutil.rmtree(record.parent)
                removed.append(record.parent)
    return removed


def _caches_of(folder: Path) -> set[Path]:
    found = set()
    for path in folder.rglob("manifest.json"):
        with suppress(RunError):
            manifest = read_json(path)
            if isinstance(manifest, dict) and "cache_dir" in manifest:
                found.add(Path(str(manifest["cache_dir"])))
    return {cache for cache in found if cache.is_dir() and not cache.is_relative_to(folder.resolve())}


def link_tree(source: Path, target: Path) -> None:
    """Makes `target` a tree of hard links (copies across file systems) to `source`; the record comes last."""
    try:
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
        for name in sorted(names, key=lambda name: name == Path(RECORD)):
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source / name, place)
            except OSError:
                shutil.copy2(source / name, place)
    except OSError as error:
        raise disk_error(target, error) from None


def _move(source: Path, target: Path) -> None:
    """Renames a folder, unless an artifact stands there; across file systems copies it beside the target first."""
    try:
        os.rename(source, target)
    except OSError:
        if (target / RECORD).exists():  # another run has made the same at this moment
            shutil.rmtree(source)
            return
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)  # of a copy that was broken off
        shutil.copytree(source, beside)
        os.rename(beside, target)
        shutil.rmtree(source)
