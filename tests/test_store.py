"""The run store: whole artifacts or none, nothing made twice."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from everlearn import artifacts
from everlearn import store as store_module
from everlearn.artifacts import fault_of
from everlearn.errors import RunError
from everlearn.files import held, read_json, read_jsonl, write_json, write_text
from everlearn.runs.mending import examine, remove
from everlearn.store import RunStore


class Maker:
    """Counts how often a step is made."""

    def __init__(self, text: str = "result") -> None:
        self.calls = 0
        self.text = text

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        write_text(folder / "inner" / "result.txt", self.text)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run", tmp_path / "cache")


def test_a_step_with_the_same_inputs_is_made_once(store: RunStore) -> None:
    make = Maker()
    first = store.step("stages/01/a", "a", {"x": 1}, make)
    second = store.step("stages/01/a", "a", {"x": 1}, make)
    assert make.calls == 1
    assert first == second
    assert (first.path / "inner" / "result.txt").read_text() == "result"


def test_what_was_just_made_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fully tuned model of seven billion weights is 28 GB."""
    read: list[Path] = []
    real = store_module.sha256_of

    def spy(path: Path) -> str:
        read.extend([path] if path.name != artifacts.RECORD else [])
        return real(path)

    for module in (store_module, artifacts):
        monkeypatch.setattr(module, "sha256_of", spy)
    RunStore(tmp_path / "one", tmp_path / "cache").step("a", "a", {}, Maker())
    assert len(read) == 1
    RunStore(tmp_path / "two", tmp_path / "cache").step("a", "a", {}, Maker())
    assert len(read) == 2


def test_other_inputs_version_or_kind_give_another_artifact(store: RunStore) -> None:
    make = Maker()
    prints = {
        store.step("a", "a", {"x": 1}, make).fingerprint,
        store.step("a", "a", {"x": 2}, make).fingerprint,
        store.step("a", "a", {"x": 2}, make, version=2).fingerprint,
        store.step("a", "b", {"x": 2}, make).fingerprint,
    }
    assert len(prints) == make.calls == 4


def test_another_run_finds_the_artifact_in_the_shared_cache(tmp_path: Path) -> None:
    make = Maker()
    RunStore(tmp_path / "one", tmp_path / "cache").step("a", "a", {}, make)
    other = RunStore(tmp_path / "two", tmp_path / "cache")
    artifact = other.step("b", "a", {}, make)
    assert make.calls == 1
    assert (artifact.path / "inner" / "result.txt").exists()
    assert other.manifest["steps"]["b"]["reused"] is True  # type: ignore[index]


def test_an_unshared_step_is_not_found_by_another_run(tmp_path: Path) -> None:
    make = Maker()
    for name in ("one", "two"):
        RunStore(tmp_path / name, tmp_path / "cache").step("a", "a", {}, make, shared=False)
    assert make.calls == 2


def test_a_failed_step_leaves_no_artifact_and_goes_on_with_its_partial_files(store: RunStore) -> None:
    seen = []

    def make(folder: Path) -> None:
        seen.append(sorted(path.name for path in folder.iterdir()))
        write_text(folder / "part-1.txt", "1")
        if len(seen) == 1:
            raise KeyboardInterrupt
        write_text(folder / "part-2.txt", "2")

    with pytest.raises(KeyboardInterrupt):
        store.step("a", "a", {}, make)
    assert not (store.folder / "a").exists()
    artifact = store.step("a", "a", {}, make)
    assert seen == [[], ["part-1.txt"]]
    assert sorted(path.name for path in artifact.path.iterdir()) == ["artifact.json", "part-1.txt", "part-2.txt"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("inner/result.txt", "resul"),
        ("inner/result.txt", "tamper"),
        ("inner/result.txt", None),
        ("artifact.json", '{"fingerprint": "'),
        ("artifact.json", "[]"),
        ("artifact.json", '{"fingerprint": "x", "seconds": 1, "files": [1]}'),
    ],
)
def test_a_corrupt_artifact_is_named_with_the_remedy_and_made_again(
    tmp_path: Path, file: str, content: str | None
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    RunStore(run, cache).step("stages/kept", "kept", {}, Maker())
    RunStore(run, cache).step("stages/a", "a", {}, Maker())
    RunStore(run, cache).update_manifest()
    if content is None:
        (run / "stages" / "a" / file).unlink()
    else:
        (run / "stages" / "a" / file).write_text(content)
    with pytest.raises(RunError, match=rf"{file} is (corrupt|missing).*doctor --cache {run}.*everlearn resume"):
        RunStore(run, cache).step("stages/a", "a", {}, Maker())
    removed = remove(examine(run).damages)
    assert run / "stages" / "a" in [damage.folder for damage in removed]
    assert all(damage.folder.name != "kept" for damage in removed)
    make = Maker()
    artifact = RunStore(run, cache).step("stages/a", "a", {}, make)
    assert make.calls == (content is not None)  # a file that is gone from the run still stands in the cache
    assert (artifact.path / "inner" / "result.txt").read_text() == "result"


def test_a_corrupt_cache_is_not_used_by_another_run(tmp_path: Path) -> None:
    RunStore(tmp_path / "one", tmp_path / "cache").step("a", "a", {}, Maker())
    (stored,) = (tmp_path / "cache").rglob("result.txt")
    stored.write_text("tamper")
    other = RunStore(tmp_path / "two", tmp_path / "cache")
    with pytest.raises(RunError, match=r"result\.txt is corrupt"):
        other.step("a", "a", {}, Maker())
    other.update_manifest()
    remove(examine(tmp_path / "two").damages)
    make = Maker()
    RunStore(tmp_path / "two", tmp_path / "cache").step("a", "a", {}, make)
    assert make.calls == 1


def test_a_full_disk_is_one_sentence_and_earlier_steps_stand(store: RunStore) -> None:
    kept = store.step("a", "a", {}, Maker())

    text = "No space left on device"
    for error in (OSError(errno.ENOSPC, text), SafetensorError(f"I/O error: {text} (os error {errno.ENOSPC})")):

        def make(folder: Path, error: Exception = error) -> None:
            raise error

        with pytest.raises(RunError, match="disk is full"):
            store.step("b", "b", {}, make)
    assert store.step("a", "a", {}, Maker()) == kept


def test_what_a_killed_write_left_does_not_enter_the_artifact(store: RunStore) -> None:
    def killed(folder: Path) -> None:
        write_text(folder / "inner" / "part.txt", "1")
        (folder / "inner" / ".result.txt.abc").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.step("a", "a", {}, killed)
    artifact = store.step("a", "a", {}, Maker())
    assert sorted(path.name for path in (artifact.path / "inner").iterdir()) == ["part.txt", "result.txt"]


@pytest.mark.parametrize(("content", "calls"), [("result", 1), ("damaged", 2)])
def test_a_kill_before_the_move_makes_nothing_twice_that_is_whole(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, content: str, calls: int
) -> None:
    make = Maker()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            store.step("stages/01/a", "a", {"x": 1}, make)
    (made,) = (store.folder / ".partial").glob("*/inner/result.txt")
    made.write_text(content)
    again = RunStore(store.folder, store.cache).step("stages/01/a", "a", {"x": 1}, make)
    assert (again.path / "inner" / "result.txt").read_text() == "result"
    assert make.calls == calls
    assert RunStore(store.folder, store.cache).step("stages/01/a", "a", {"x": 1}, make) == again
    assert fault_of(again.path) is None


def test_an_artifact_that_another_run_has_just_moved_there_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    move = store_module._move

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(store_module, "_move", move)
        RunStore(tmp_path / "other", tmp_path / "cache").step("stages/01/a", "a", {}, make)
        move(source, target)

    monkeypatch.setattr(store_module, "_move", late)
    found = RunStore(tmp_path / "one", tmp_path / "cache").step("stages/01/a", "a", {}, make)
    assert (found.path / "inner" / "result.txt").read_text() == "result"


def test_the_seconds_of_a_step_are_its_own(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def inner(folder: Path) -> None:
        clock[0] += 20

    def outer(folder: Path) -> None:
        clock[0] += 5
        store.step("inner", "inner", {}, inner)
        store.step("inner", "inner", {}, inner)
        store.step("next", "next", {}, inner)

    store.step("outer", "outer", {}, outer)
    steps = store.manifest["steps"]
    assert steps["inner"]["seconds"] == steps["next"]["seconds"] == 20  # type: ignore[index]
    assert steps["outer"]["seconds"] == 5  # type: ignore[index]


def test_a_second_process_is_kept_out(store: RunStore) -> None:
    import subprocess
    import sys

    code = f"from pathlib import Path; from everlearn.files import held\nwith held(Path({str(store.folder)!r})): pass"
    with held(store.folder):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode == 1
    assert "in use by another everlearn process" in other.stderr


def test_a_folder_that_cannot_be_locked_is_refused(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock._acquire", read_only)
    with pytest.raises(RunError, match=r"cannot write .*Read-only file system"), held(store.folder):
        pass


def test_two_runs_that_make_the_same_at_once_end_with_one_artifact(tmp_path: Path) -> None:
    one, other = (RunStore(tmp_path / name, tmp_path / "cache") for name in ("one", "other"))

    def make(folder: Path) -> None:
        other.step("a", "a", {}, Maker())
        Maker()(folder)

    assert (one.step("a", "a", {}, make).path / "inner" / "result.txt").read_text() == "result"
    assert len(list((tmp_path / "cache").rglob("artifact.json"))) == 1
    assert not list((one.folder / ".partial").iterdir())


def test_a_cached_folder_without_its_record_is_made_again(tmp_path: Path) -> None:
    RunStore(tmp_path / "one", tmp_path / "cache").step("a", "a", {}, Maker())
    (record,) = (tmp_path / "cache").rglob("artifact.json")
    record.unlink()
    make = Maker("new")
    artifact = RunStore(tmp_path / "two", tmp_path / "cache").step("a", "a", {}, make)
    assert make.calls == 1
    assert (artifact.path / "inner" / "result.txt").read_text() == "new"


def test_an_artifact_that_was_half_linked_is_linked_again(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real, linked = os.link, []

    def link(source: Path, target: Path) -> None:
        if linked:
            raise KeyboardInterrupt
        linked.append(target)
        real(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(os, "link", link)
        with pytest.raises(KeyboardInterrupt):
            store.step("a", "a", {}, Maker())
    make = Maker()
    assert (store.step("a", "a", {}, make).path / "inner" / "result.txt").exists()
    assert make.calls == 0


def test_across_file_systems_an_artifact_appears_whole_or_not_at_all(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if ".partial" in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    def break_off(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        shutil.copy(source / "artifact.json", target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", refuse)
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "copytree", break_off)
        with pytest.raises(KeyboardInterrupt):
            store.step("a", "a", {}, Maker())
    make = Maker()
    assert (store.step("a", "a", {}, make).path / "inner" / "result.txt").exists()
    assert make.calls == 0  # what was made whole before the kill is moved
    assert not list((store.folder / ".partial").iterdir())
    assert len(list(store.cache.rglob("result.txt"))) == 1


def test_the_manifest_names_what_stands_even_when_it_was_lost(store: RunStore) -> None:
    for value in (1, 2):
        artifact = store.step("a", "a", {"x": value}, Maker())
        assert store.manifest["steps"]["a"]["fingerprint"] == artifact.fingerprint  # type: ignore[index]
    store.manifest_path.unlink()
    again = RunStore(store.folder, store.cache)
    again.step("a", "a", {"x": 2}, Maker())
    assert read_json(again.manifest_path)["steps"].keys() == {"a"}  # type: ignore[index, call-overload]


def test_a_complete_run_keeps_nothing_of_unfinished_attempts(store: RunStore) -> None:
    store.step("a", "a", {}, Maker())
    store.tidy()
    assert not (store.folder / ".partial").exists()


def test_a_complete_run_keeps_no_write_that_was_killed_but_a_report_being_written(store: RunStore) -> None:
    kept = ["rehearsal.jsonl", ".lock", ".report.html.0123456789ab.everlearn", ".mine.0123456789ab", ".x.everlearn"]
    for name in [*kept, ".rehearsal.jsonl.0123456789ab.everlearn"]:
        write_text(store.folder / "stages" / "01" / name, "half")
    store.tidy()
    assert {path.name for path in (store.folder / "stages" / "01").iterdir()} == set(kept)


def test_the_manifest_is_written_after_the_artifact(store: RunStore) -> None:
    store.step("a", "a", {}, Maker())
    manifest = read_json(store.manifest_path)
    assert list(manifest["steps"]) == ["a"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize("content", ["{", "[]", '{"steps": []}'])
def test_a_corrupt_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json is corrupt.*delete it and run 'everlearn resume'"):
        RunStore(tmp_path / "run", tmp_path / "cache")


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (done.append(name), real(*given)))
    write_text(tmp_path / "x.txt", "x")
    assert done == ["fsync", "replace"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="disk is full while writing"):
        write_text(tmp_path / "x.txt", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["[]", "{", "3"])
def test_a_corrupt_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(RunError, match=r"rows\.jsonl is corrupt near line 2"):
        list(read_jsonl(tmp_path / "rows.jsonl"))


def test_files_may_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("x")
    write_text(tmp_path / "ours.txt", "x")
    assert (tmp_path / "ours.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
