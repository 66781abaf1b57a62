"""Mending: only what everlearn has made is ever deleted, and only after it was listed and agreed to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.artifacts import RECORD, read_record
from everlearn.cli.main import main
from everlearn.errors import RunError
from everlearn.files import write_text
from everlearn.runs.mending import examine, remove
from everlearn.store import MARK, RunStore

HEX = "0123456789abcdef" * 2
SUM = "0" * 64
Places = tuple[Path, Path]


def make(folder: Path) -> None:
    write_text(folder / "inner" / "result.txt", "result")
    write_text(folder / "other.txt", "other")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A run folder with two artifacts, and its cache beside it."""
    store = RunStore(tmp_path / "run", tmp_path / "cache")
    store.update_manifest(kind="run")
    store.step("stages/01-a/training", "training", {}, make)
    store.step("stages/01-a/state", "state", {}, make, shared=False)
    return store.folder, store.cache


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def spoil(folder: Path, name: str = "other.txt") -> None:
    (folder / name).unlink()  # else all hard links of it change
    (folder / name).write_text("tamper")


def in_cache(cache: Path) -> Path:
    (record,) = cache.glob(f"??/*/{RECORD}")
    return record.parent


def test_a_folder_that_only_looks_like_an_artifact_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("", "notes", "notes/ab", f"01/{HEX}", f"stages/01/{HEX}", f".own/{HEX}", "runs/x/stages/a"):
        write_text(tmp_path / name / "thesis.txt", "years of work")
        write_text(tmp_path / name / RECORD, '{"files": {"thesis.txt": 1}}')
    before = files_in(tmp_path)
    assert main(["doctor", "--cache", str(tmp_path), "--yes"]) == 2
    assert "holds nothing of everlearn's" in capsys.readouterr().err
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("name", [RECORD, f"notes/{RECORD}", f"01/{HEX}/{RECORD}", f"zz/{HEX}/{RECORD}"])
def test_what_a_marked_cache_holds_beside_its_artifacts_stays(places: Places, name: str) -> None:
    cache = places[1]
    record = {"fingerprint": HEX, "seconds": 1, "files": {"thesis.txt": {"bytes": 1, "sha256": SUM}}}
    write_text(cache / name, "{}" if HEX in name else json.dumps(record))
    write_text((cache / name).parent / "thesis.txt", "years of work")
    kept = files_in(cache) - ({name} if name.startswith("01/") else set())  # the record in an artifact's place
    remove(examine(cache).damages)
    assert files_in(cache) == kept


def test_only_the_files_that_the_record_names_are_deleted(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = in_cache(places[1])
    spoil(artifact)
    for name in ("thesis.txt", "inner/notes.txt", ".hidden"):
        write_text(artifact / name, "mine")
    assert main(["doctor", "--cache", str(places[1]), "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "to be deleted: inner/result.txt, other.txt, artifact.json" in shown
    assert "kept, as no record of everlearn names it: .hidden, inner/notes.txt, thesis.txt" in shown
    assert files_in(artifact) == {"thesis.txt", "inner/notes.txt", ".hidden"}
    other = RunStore(places[0].parent / "other", places[1])
    other.step("stages/01-a/training", "training", {}, make)
    assert read_record(artifact) is not None
    assert (artifact / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["stages/01-a/training", "stages/01-a/state"])
@pytest.mark.parametrize("name", ["other.txt", RECORD])
def test_a_file_beside_a_runs_artifact_survives_mending_and_making_again(
    places: Places, place: str, name: str
) -> None:
    run, cache = places
    spoil(run / place, name)
    write_text(run / place / "inner" / "thesis.txt", "mine")
    assert [damage.folder for damage in remove(examine(run).damages)] == [run / place]
    assert files_in(run / place) == {"inner/thesis.txt"}
    store = RunStore(run, cache)
    store.step(place, place.rpartition("/")[2], {}, make, shared="training" in place)
    assert files_in(run / place) == {"inner/thesis.txt", "inner/result.txt", "other.txt", RECORD}


def test_nothing_is_deleted_without_an_answer(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    run, cache = places
    spoil(run / "stages/01-a/training")
    before = files_in(run) | files_in(cache)
    assert main(["doctor", "--cache", str(run)]) == 2
    shown = capsys.readouterr().out
    assert f"{run}/stages/01-a/training/other.txt is corrupt" in shown
    assert "1 of 4 artifacts are corrupt" in shown
    assert "Nothing was deleted" in shown
    assert files_in(run) | files_in(cache) == before


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2), ("no", 2), (EOFError, 2)])
def test_the_answer_decides(places: Places, monkeypatch: pytest.MonkeyPatch, answer: object, code: int) -> None:
    damaged = places[0] / "stages/01-a/training"
    spoil(damaged)

    def answered(_: str) -> str:
        if answer is EOFError:
            raise EOFError
        return str(answer)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answered)
    assert main(["doctor", "--cache", str(places[0])]) == code
    assert damaged.exists() == bool(code)


def test_a_cache_that_only_a_manifest_names_is_looked_at_if_it_is_marked(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = places
    spoil(in_cache(cache))
    (cache / MARK).unlink()
    assert main(["doctor", "--cache", str(run), "--yes"]) == 0
    assert (
        f"carries no mark of everlearn and is not looked at: if it is yours, 'everlearn doctor --cache {cache}'"
        in (capsys.readouterr().out)
    )
    assert (in_cache(cache) / "other.txt").read_text() == "tamper"
    write_text(cache / MARK, "")
    assert main(["doctor", "--cache", str(run), "--yes"]) == 0
    assert not list(cache.glob("??/*"))


def test_a_cache_of_an_earlier_release_is_used_and_mended(places: Places, tmp_path: Path) -> None:
    cache = places[1]
    (cache / MARK).unlink()
    artifact = in_cache(cache)
    spoil(artifact)
    assert [damage.folder for damage in remove(examine(cache).damages)] == [artifact]
    calls: list[Path] = []
    RunStore(tmp_path / "next", cache).step(
        "stages/01-a/training", "training", {}, lambda f: (calls.append(f), make(f))
    )
    assert len(calls) == 1
    assert (cache / MARK).exists()


def test_an_unread_record_in_an_unmarked_cache_is_told_and_left(places: Places) -> None:
    cache = places[1]
    RunStore(cache.parent / "next", cache).step("stages/b", "b", {}, make)
    (cache / MARK).unlink()
    artifact = sorted(cache.glob("??/*"))[0]
    (artifact / RECORD).write_text("{")
    found = examine(cache)
    assert not found.damages
    assert "is no record of everlearn" in found.remarks[0]


def test_links_are_neither_followed_nor_deleted(places: Places, tmp_path: Path) -> None:
    cache = places[1]
    outside = tmp_path / "outside"
    shutil.copytree(in_cache(cache), outside / "inner-of")
    spoil(outside / "inner-of")
    artifact = in_cache(cache)
    shutil.rmtree(artifact / "inner")
    (artifact / "inner").symlink_to(outside)
    write_text(outside / "result.txt", "mine")
    (artifact.parent / HEX.replace("0", "1")).symlink_to(outside / "inner-of")
    (cache / "ff").symlink_to(outside)
    before = files_in(outside)
    remove(examine(cache).damages)
    assert files_in(outside) == before
    assert (artifact / "inner").is_symlink()
    link = tmp_path / "link"
    link.symlink_to(cache)
    with pytest.raises(RunError, match="is a link, which everlearn does not follow"):
        examine(link)


@pytest.mark.parametrize(
    "name", ["../thesis.txt", "/etc/hostname", "..", "", "a/../../thesis.txt", "\x00", "\ud800", "a" * 300]
)
def test_a_record_that_names_files_elsewhere_is_none(places: Places, name: str) -> None:
    artifact = in_cache(places[1])
    write_text(artifact.parent / "thesis.txt", "mine")
    record = json.loads((artifact / RECORD).read_text())
    record["files"][name] = {"bytes": 4, "sha256": SUM}
    (artifact / RECORD).unlink()
    (artifact / RECORD).write_text(json.dumps(record))
    assert read_record(artifact) is None
    remove(examine(places[1]).damages)
    assert (artifact.parent / "thesis.txt").exists()


def test_a_folder_of_runs_is_mended_with_its_comparisons_and_its_cache(tmp_path: Path) -> None:
    for run in ("runs/one", "runs/both/a-s0", "runs/both/b-s0"):
        store = RunStore(tmp_path / run, tmp_path / "runs" / ".cache")
        store.update_manifest(kind="run")
        store.step("stages/a", "a", {"run": run}, make)
        spoil(store.folder / "stages" / "a")
    found = examine(tmp_path / "runs")
    assert len(found.damages) == 3
    assert found.artifacts == 6


TREE = ("stages", "01-a", "training", ".own", ".partial", ".cache", "model", "01", "ab", HEX, "ab" + HEX[2:], "x.txt")
KINDS = ("x.txt", RECORD, "manifest.json", "recipe.yaml", "plan.json")
MANIFEST = '{"steps": {"stages/01-a": {"files": {"x.txt": 4}}}, "method": {}}'
RECORDS = st.builds(
    lambda fingerprint, name: json.dumps(
        {"fingerprint": fingerprint, "kind": "a", "seconds": 1, "files": {name: {"bytes": 4, "sha256": SUM}}}
    ),
    st.sampled_from([HEX, "x", "ab" + HEX[2:]]),
    st.sampled_from(["../x.txt", "/x", "a/../../x.txt", "nothing"]),
)
FILES = st.dictionaries(
    st.tuples(st.lists(st.sampled_from(TREE), max_size=4).map(tuple), st.sampled_from(KINDS)),
    st.sampled_from(["mine", "{}", "[]", MANIFEST]) | RECORDS,
    max_size=12,
)


@given(files=FILES, extra=st.lists(st.sampled_from(TREE), max_size=3), is_marked=st.booleans())
def test_no_file_is_ever_deleted_that_no_record_names(
    tmp_path_factory: pytest.TempPathFactory, files: dict, extra: list[str], is_marked: bool
) -> None:
    """Trees of everlearn's own names with files of the user's: of these, records that name nothing go at most."""
    root = tmp_path_factory.mktemp("tree")
    mine = set()
    for (folders, name), content in files.items():
        path = root.joinpath(*folders, name)
        if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
            write_text(path, content)
            mine.add(path)
    if is_marked:
        write_text(root / MARK, "")
    for place in (root.joinpath(*extra), root):
        if place.is_dir():
            main(["doctor", "--cache", str(place), "--yes"])
    for path in mine:
        if path.exists():
            continue
        folder = path.parent
        is_named = folder.name == "01-a" and folder.parent.name == "stages"  # by one of the manifests above
        is_in_layout = folder.name[:2] == folder.parent.name or folder.parent.name == ".own"
        assert is_named or (path.name == RECORD and is_in_layout), f"{path} is the user's"
    shutil.rmtree(root)
