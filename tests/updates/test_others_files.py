"""What somebody has put into the folder of a run of version updates is not deleted with what everlearn made."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.files import move_into, unfinished, write_text
from everlearn.training.checkpoint import is_state, recover_folder, remove_state, replace_folder
from everlearn.updates.folder import UpdateFolder

STATE = ("model.safetensors", "optimizer.safetensors", "state.json")
MINE = ("notes.txt", "gguf/model.gguf")


def folder_with(folder: Path, names: tuple[str, ...], text: str = "x") -> Path:
    for name in names:
        write_text(folder / name, text)
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_state_goes_without_what_stands_beside_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m1", (*STATE, *MINE))
    remove_state(folder)
    assert files_in(folder) == set(MINE)
    assert not is_state(folder)
    remove_state(folder_with(tmp_path / "m2", STATE))
    assert not (tmp_path / "m2").exists()


@pytest.mark.parametrize("made", [STATE, ("config.json", "model.safetensors")])
def test_a_replaced_folder_keeps_what_is_not_everlearns(tmp_path: Path, made: tuple[str, ...]) -> None:
    target = folder_with(tmp_path / "v1", (*made, *MINE), "old")
    replace_folder(folder_with(unfinished(target), made[:2], "new"), target)
    assert files_in(target) == {*made[:2], *MINE}
    assert (target / made[0]).read_text() == "new"
    assert (target / "notes.txt").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"v1"}


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_kill_between_the_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    target = folder_with(tmp_path / "v1", (*STATE, *MINE), "old")
    source = folder_with(unfinished(target), STATE, "new")
    rename, left = Path.rename, [1 + is_replaced]

    def killed(path: Path, to: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(source, target)
    recover_folder(target)
    assert files_in(target) == {*STATE, *MINE}
    assert (target / "state.json").read_text() == ("new" if is_replaced else "old")


def test_only_what_everlearn_had_begun_to_write_is_cleaned(tmp_path: Path) -> None:
    kept = [
        ".venv.3/pyvenv.cfg",
        "releases/.cache.2024/x",
        "segments/m1/.git.1/HEAD",
        ".tokenizer/x",
        ".a.0123456789ab",
    ]
    folder_with(tmp_path, (*kept, "segments/m1/.checkpoint.0123456789ab.everlearn/model.safetensors"))
    write_text(tmp_path / "heldout" / ".v1.npy.0123456789ab.everlearn", "half")
    UpdateFolder(tmp_path).remove_partial()
    assert files_in(tmp_path) == set(kept)


def test_what_is_moved_into_a_folder_leaves_its_files(tmp_path: Path) -> None:
    target = folder_with(tmp_path / "blocks", MINE, "mine")
    move_into(folder_with(tmp_path / ".made", ("train.bin", "blocks.json")), target, last="blocks.json")
    assert files_in(target) == {"train.bin", "blocks.json", *MINE}
    assert not (tmp_path / ".made").exists()
