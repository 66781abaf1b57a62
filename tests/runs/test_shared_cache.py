"""A cache that several users share: read by its group, used where it may not be written, copied from where need be."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from everlearn.files import write_text
from everlearn.store import RunStore

NOBODY = 65534


def make(folder: Path) -> None:
    write_text(folder / "inner" / "result.txt", "result")


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def another_user(*, group: int = NOBODY) -> Iterator[None]:
    if os.geteuid():
        pytest.skip("only root can be another user for a while")
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.parametrize("mode", [0o2770, 0o770])
def test_what_is_put_into_a_shared_cache_has_its_groups_rights(tmp_path: Path, mode: int) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    with umask(0o077):
        RunStore(tmp_path / "run", cache).step("stages/a", "a", {}, make)
    (stored,) = cache.glob("??/*")
    for path in (stored.parent, stored, stored / "inner"):
        assert rights(path) & 0o070 == 0o070, path
        assert path.stat().st_gid == cache.stat().st_gid
    for path in (stored / "artifact.json", stored / "inner" / "result.txt"):
        assert rights(path) & 0o040, path


def test_a_cache_of_ones_own_stays_as_the_umask_says(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with umask(0o077):
        RunStore(tmp_path / "run", tmp_path / "cache").step("stages/a", "a", {}, make)
    assert all(rights(path) & 0o077 == 0 for path in (tmp_path / "cache").rglob("*"))


def test_a_second_user_of_the_group_reads_and_adds(open_folder: Path) -> None:
    cache = open_folder / "cache"
    cache.mkdir()
    if os.geteuid() == 0:
        os.chown(cache, -1, NOBODY)
    cache.chmod(0o2770)
    with umask(0o077):
        RunStore(open_folder / "mine", cache).step("stages/a", "a", {}, make)
    theirs = open_folder / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    with another_user(), umask(0o077):
        store = RunStore(theirs / "run", cache)
        assert store.step("stages/a", "a", {}, lambda _: pytest.fail("it stands in the cache")).path.exists()
        store.step("stages/b", "b", {}, make)
    assert len(list(cache.glob("??/*"))) == 2


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o700])
def test_a_cache_that_may_not_be_written_is_used_as_far_as_it_may_be_read(open_folder: Path, mode: int) -> None:
    cache = open_folder / "cache"
    RunStore(open_folder / "mine", cache).step("stages/a", "a", {}, make)
    cache.chmod(mode)
    theirs = open_folder / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    calls: list[Path] = []

    def counted(folder: Path) -> None:
        calls.append(folder)
        make(folder)

    with another_user():
        for _ in range(2):
            store = RunStore(theirs / "run", cache)
            store.step("stages/a", "a", {}, counted)
            store.step("stages/b", "b", {}, counted)
        assert (theirs / "run/stages/b/inner/result.txt").read_text() == "result"
    assert len(calls) == (1 if mode & 0o004 or mode & 0o001 else 2)
    assert len(list(cache.glob("??/*"))) == 1


def test_where_files_of_others_may_not_be_linked_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunStore(tmp_path / "one", tmp_path / "cache").step("stages/a", "a", {}, make)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    found = RunStore(tmp_path / "two", tmp_path / "cache").step("stages/a", "a", {}, make)
    assert (found.path / "inner" / "result.txt").stat().st_nlink == 1
