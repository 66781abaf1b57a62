"""What a step has used is told by the store, without the step's doing."""

from __future__ import annotations

import sys
from mmap import mmap
from pathlib import Path

import pytest

from everlearn import usage
from everlearn.artifacts import read_record
from everlearn.files import write_text
from everlearn.store import RunStore

MIB = 1 << 20


def test_tokens_belong_to_the_innermost_step(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", tmp_path / "cache")

    def inner(folder: Path) -> None:
        usage.wrote(5)
        write_text(folder / "a", "a")

    def outer(folder: Path) -> None:
        usage.wrote(1)
        for at in range(2):
            store.step(f"inner/{at}", "inner", {"at": at}, inner)
        store.step("inner/0", "inner", {"at": 0}, inner)  # found
        usage.wrote(2)
        write_text(folder / "b", "b")

    store.step("outer", "outer", {}, outer)
    store.step("after", "inner", {"at": "after"}, inner)
    found = {}
    for place in ("inner/0", "inner/1", "outer", "after"):
        record = read_record(store.folder / place)
        assert record is not None
        found[place] = record.generated_tokens
        assert store.manifest["steps"][place]["generated_tokens"] == record.generated_tokens  # type: ignore[index]
    assert found == {"inner/0": 5, "inner/1": 5, "outer": 3, "after": 5}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak from a moment on")
def test_the_peak_of_a_step_is_its_own_and_that_of_the_steps_within_it(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", tmp_path / "cache")

    def holding(mib: int):  # type: ignore[no-untyped-def]
        def make(folder: Path) -> None:
            with mmap(-1, mib * MIB) as held:  # given back at once, whatever the allocator keeps
                for _ in range(mib):
                    held.write(b"x" * MIB)
            write_text(folder / "a", "a")

        return make

    def outer(folder: Path) -> None:
        store.step("inner", "inner", {}, holding(120))
        write_text(folder / "b", "b")

    store.step("outer", "outer", {}, outer)
    store.step("after", "after", {}, holding(1))
    peaks = {}
    for place in ("outer", "inner", "after"):
        record = read_record(store.folder / place)
        assert record is not None
        peaks[place] = record.peak_memory_bytes
    assert peaks["inner"] > peaks["after"] + 80 * MIB
    assert peaks["outer"] >= peaks["inner"]


def test_records_of_the_first_releases_are_read(tmp_path: Path) -> None:
    text = f'{{"fingerprint": "{"0" * 32}", "kind": "a", "seconds": 1.0, "files": {{}}}}'
    (tmp_path / "artifact.json").write_text(text)
    record = read_record(tmp_path)
    assert record is not None
    assert (record.generated_tokens, record.peak_memory_bytes) == (0, 0)
