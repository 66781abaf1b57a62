"""The run folder: every step's result is a folder of plain files that appears whole or not at all.

A step's fingerprint hashes its name and all that its result depends on. Its files are made in
`RUN/.partial/<fingerprint>` (which survives a kill, so that a step can go on from what it had finished), then moved
into the shared cache with their sizes and SHA-256 sums in `artifact.json`, then hard-linked into the run folder.
So a finished artifact is never made twice, in this run or in another one that shares the cache, and a kill at any
moment leaves either no artifact or a whole one. `manifest.json` names what this run has finished.
What somebody has put beside the files of an artifact stays where it is. A cache that others own is used as far as it
may be read; what cannot be put there stays in the run, under `.own`.
The seconds of a step and the tokens written for it are its own: those of the steps that it runs itself are theirs.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError

from everlearn import usage
from everlearn.artifacts import FINGERPRINT, RECORD, Artifact, StepRunner, fault_of, read_record, remove_artifact
from everlearn.errors import RunError
from everlearn.files import (
    disk_error,
    make_folder,
    read_vouched,
    remove_unfinished,
    sha256_of,
    share_as,
    write_error,
    write_json,
    write_text,
    write_vouched,
)
from everlearn.fingerprints import fingerprint_of
from everlearn.recipe_paths import kept_path

MARK = ".everlearn-cache"
"""Stands in every cache: only where it does, `everlearn doctor` takes a folder's place for a sign of its origin."""
_OF_A_RUN = ("recipe.yaml", "bad_rows.jsonl", "model/**/*")
"""Files of a finished run that are no artifact's."""
_BESIDE_ARTIFACTS = ("stages/*/*.jsonl", "stages/*/synthesis/*.jsonl", "stages/*/scores.json")
_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)


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
        self._inner_tokens = self._peak = 0
        make_folder(folder)
        make_folder(cache)
        if cache.is_symlink() and cache.parent == folder.parent:
            raise RunError(
                f"{cache} is a link, which everlearn does not follow: name the folder it leads to as the cache, by "
                f"--cache-dir {os.readlink(cache)}."
            )
        with suppress(RunError, PermissionError):  # somebody else's, to be read only
            if not (cache / MARK).exists():
                write_text(cache / MARK, "A cache of everlearn: everything in it can be made again from its runs.\n")
        self.manifest: dict[str, object] = {}
        if self.manifest_path.exists():
            loaded = read_vouched(self.manifest_path)
            if not isinstance(loaded.get("steps", {}), dict):
                raise RunError(f"{self.manifest_path} is corrupt: delete it and run 'everlearn resume'.")
            self.manifest = loaded
        self.manifest["cache_dir"] = kept_path(os.path.abspath(cache), folder)
        self.manifest.setdefault("folder", str(folder.absolute()))

    @property
    def manifest_path(self) -> Path:
        """Where the manifest stands."""
        return self.folder / "manifest.json"

    def update_manifest(self, **values: object) -> None:
        """Sets top-level manifest entries and writes the file."""
        self.manifest.update(values)
        write_vouched(self.manifest_path, self.manifest)

    def vouch_for_rows(self) -> None:
        """Notes the sums of the files of rows and scores that stand beside the artifacts of stages."""
        rows = [path for name in _BESIDE_ARTIFACTS for path in self.folder.glob(name)]
        self.update_manifest(rows={_name(path, self.folder): sha256_of(path) for path in sorted(rows)})

    def vouch_for_files(self) -> None:
        """Notes the sums of what else a finished run consists of: recipe, bad rows, the model.

        Artifacts have records, whose sums are noted with their steps; manifest, matrix, metrics and lineage carry
        their own. The report and the log are vouched for by nothing: they say again what stands elsewhere.
        """
        known = {}  # of the weights that are handed back, which are files of an artifact
        for place in self._noted():
            record = read_record(place)
            for name, (_, digest) in record.files.items() if record else ():
                known[_same(place / name)] = digest
        found = [path for name in _OF_A_RUN for path in self.folder.glob(name) if path.is_file()]
        sums = {_name(path, self.folder): known.get(_same(path)) or sha256_of(path) for path in sorted(found)}
        self.update_manifest(files=sums)

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
        """Makes or finds the artifact of a step; see `everlearn.artifacts.StepRunner`.

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
        began, tokens = time.monotonic(), usage.written()
        outer = (self._inner_seconds, self._inner_tokens, max(self._peak, usage.peak_bytes()))
        self._inner_seconds, self._inner_tokens, self._peak = 0.0, 0, 0
        usage.restart_peak()
        try:
            return self._find_or_make(place, fingerprint, kind, make, shared=shared)
        finally:
            self._inner_seconds = outer[0] + time.monotonic() - began
            self._inner_tokens = outer[1] + usage.written() - tokens
            self._peak = max(outer[2], self._peak, usage.peak_bytes())

    def _find_or_make(
        self, place: str, fingerprint: str, kind: str, make: Callable[[Path], None], *, shared: bool
    ) -> Artifact:
        target = self.folder / place
        if self._holds(target, fingerprint):
            self._note(place, fingerprint, target, reused=True)
            return Artifact(target, fingerprint)
        own = self.folder / ".own" / fingerprint
        places = [self.cache / fingerprint[:2] / fingerprint, own] if shared else [own]
        stored = next((found for found in places if _may_be_used(found)), None)
        reused = stored is not None
        if stored is None:
            stored = self._make(fingerprint, kind, make, places)
        self._check(stored)
        link_tree(stored, target)
        self._note(place, fingerprint, target, reused=reused)
        return Artifact(target, fingerprint)

    def _holds(self, target: Path, fingerprint: str) -> bool:
        record = read_record(target)
        if record is not None and (record.fingerprint != fingerprint or self._is_altered(target)):
            return False
        if record is None and not ((target / RECORD).exists() and target in self._noted()):
            return False
        self._check(target)
        return True

    def _is_altered(self, target: Path) -> bool:
        """Whether an artifact's record is another one than the manifest has noted."""
        steps = self.manifest.get("steps")
        known = steps.get(_name(target, self.folder)) if isinstance(steps, dict) else None
        noted = known.get("record") if isinstance(known, dict) else None
        return noted is not None and noted != sha256_of(target / RECORD)

    def _noted(self) -> list[Path]:
        """Where the manifest says that artifacts stand."""
        steps = self.manifest.get("steps")
        return [self.folder / place for place in steps] if isinstance(steps, dict) else []

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

    def _make(self, fingerprint: str, kind: str, make: Callable[[Path], None], places: Sequence[Path]) -> Path:
        """Makes an artifact and puts it into the first of the places that can be written to; returns which."""
        partial = self.folder / ".partial" / fingerprint
        began, tokens = time.monotonic(), usage.written()
        try:
            partial.mkdir(parents=True, exist_ok=True)
            if fault_of(partial):  # else it was made whole, and killed before it was moved
                (partial / RECORD).unlink(missing_ok=True)
                for unfinished in [path for path in partial.rglob(".*") if path.is_file()]:
                    unfinished.unlink()  # a write that was killed before its rename
                make(partial)
                files = {
                    path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
                    for path in _files_of(partial)
                }
                write_json(
                    partial / RECORD,
                    {
                        "fingerprint": fingerprint,
                        "kind": kind,
                        "seconds": round(time.monotonic() - began - self._inner_seconds, 3),
                        "generated_tokens": usage.written() - tokens - self._inner_tokens,
                        "peak_memory_bytes": max(self._peak, usage.peak_bytes()),
                        "files": files,
                    },
                )
            for place in places:
                try:
                    if place.is_relative_to(self.cache):
                        _put_into_cache(partial, place, self.cache)
                    else:
                        place.parent.mkdir(parents=True, exist_ok=True)
                        _move(partial, place)
                    break
                except OSError as error:
                    if place is places[-1] or error.errno not in _MAY_NOT:
                        raise
            self._verified.add(place)
        except (OSError, SafetensorError) as error:
            raise write_error(partial, error) from None
        return place

    def _note(self, place: str, fingerprint: str, target: Path, *, reused: bool) -> None:
        steps = self.manifest.setdefault("steps", {})
        assert isinstance(steps, dict), "the manifest's steps are a mapping"
        known = steps.get(place)
        digest = sha256_of(target / RECORD)
        if isinstance(known, dict) and known.get("fingerprint") == fingerprint:
            if known.get("record") != digest:
                known["record"] = digest
                write_vouched(self.manifest_path, self.manifest)
        else:
            record = read_record(target)
            assert record is not None, "an artifact that was checked has its record"
            steps[place] = {
                "fingerprint": fingerprint,
                "seconds": record.seconds,
                "generated_tokens": record.generated_tokens,
                "peak_memory_bytes": record.peak_memory_bytes,
                "reused": reused,
                "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "files": {name: size for name, (size, _) in record.files.items()},
                "record": digest,
            }
            write_vouched(self.manifest_path, self.manifest)

    def tidy(self) -> None:
        """Removes what unfinished attempts left behind; called when a run is complete."""
        with suppress(OSError):
            remove_unfinished(self.folder)
            for attempt in (self.folder / ".partial").iterdir():
                if FINGERPRINT.fullmatch(attempt.name):
                    shutil.rmtree(attempt)
            (self.folder / ".partial").rmdir()


def link_tree(source: Path, target: Path) -> None:
    """Makes `target` hold hard links (copies where there can be none) to the files of `source`; the record comes last.

    An artifact that stood there goes, and a file of the same name is replaced; all others stay.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    try:
        remove_artifact(target)
        target.mkdir(parents=True, exist_ok=True)
        record = read_record(source)
        names = sorted(record.files) if record else [_name(path, source) for path in _files_of(source)]
        for name in [*names, *([RECORD] if record else [])]:
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            try:
                os.link(source / name, place)
            except OSError:  # another file system, or a file of another user's
                shutil.copy2(source / name, place)
    except OSError as error:
        raise disk_error(target, error) from None


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _same(path: Path) -> tuple[int, int]:
    """What hard links to one file have in common."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _may_be_used(stored: Path) -> bool:
    """Whether an artifact stands there, which this user may read."""
    try:
        if not (stored / RECORD).exists():
            return False
    except PermissionError:
        return False
    record = read_record(stored)
    names = [RECORD, *(record.files if record else ())]
    return all(os.access(stored / name, os.R_OK) for name in names if (stored / name).exists())


def _put_into_cache(partial: Path, place: Path, cache: Path) -> None:
    """Moves an artifact into the cache, with the rights that the cache gives its group."""
    if not place.parent.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        share_as(cache, place.parent)
    share_as(cache, partial)
    _move(partial, place)


def _move(source: Path, target: Path) -> None:
    """Renames a folder, unless an artifact stands there; across file systems copies it beside the target first.

    A folder without a record is a broken copy: its files are replaced, and what else is in it stays.
    """
    try:
        os.rename(source, target)
    except OSError:
        if not target.exists():
            beside = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.rmtree(beside, ignore_errors=True)  # of a copy that was broken off
            shutil.copytree(source, beside)
            os.rename(beside, target)
        elif not (target / RECORD).exists():  # else another run has made the same at this moment
            link_tree(source, target)
        shutil.rmtree(source)
