"""Damaged files of a run of version updates, and kills at odd moments: a sentence, and a remedy that works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from everlearn.cli.main import main
from everlearn.errors import RunError
from everlearn.updates import executor
from everlearn.updates.executor import execute
from everlearn.updates.folder import UpdateFolder
from tests.killed import killed_at
from tests.updates.test_executor import histories, releases, same_tensors
from tests.updates.tiny_runs import tiny_recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    execute(tiny_recipe(folder, versions=1))
    return folder / "runs" / "tiny"


def one_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [one_bit, cut, gone])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("place", ["states/*", "segments/*/checkpoint"])
def test_a_damaged_state_is_named_and_trained_again_once_it_is_deleted(
    tmp_path: Path,
    whole: Path,
    place: str,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    every = 1000 if place == "states/*" else 1
    recipe = tiny_recipe(tmp_path, versions=1, training={"checkpoint_every": every})
    run = tmp_path / "runs" / "tiny"
    with killed_at(2) as progress:
        execute(recipe, progress=progress)
    (found,) = run.glob(f"{place}/{name}")
    damage(found)
    with pytest.raises(RunError, match=f"{found.parent} is damaged: delete this folder and run 'everlearn resume'"):
        execute(recipe)
    shutil.rmtree(found.parent)
    execute(recipe)
    assert histories(run) == histories(whole)
    for version, tensors in releases(run).items():
        assert same_tensors(tensors, releases(whole)[version])


@pytest.mark.parametrize("damage", [cut, gone])
@pytest.mark.parametrize("name", ["train.bin", "heldout.bin", "blocks.json"])
def test_damaged_token_files_are_named_and_made_again_once_they_are_deleted(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    recipe = tiny_recipe(tmp_path, versions=1)
    execute(recipe)
    (found,) = (tmp_path / "cache" / "blocks").glob(f"*/{name}")
    damage(found)
    if found.name != "blocks.json" or found.exists():  # without its record it is no folder of token files
        with pytest.raises(RunError, match=f"{found.parent} is damaged: delete this folder"):
            execute(recipe)
        shutil.rmtree(found.parent)
    execute(recipe)
    assert found.exists()


def test_a_damaged_tokenizer_is_named_and_made_again_once_it_is_deleted(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, versions=1)
    execute(recipe)
    own = tmp_path / "runs" / "tiny" / "tokenizer"
    before = (own / "tokenizer.json").read_bytes()
    cut(own / "tokenizer.json")
    with pytest.raises(RunError, match=f"{own} is damaged: delete this folder"):
        execute(recipe)
    shutil.rmtree(own)
    execute(recipe)
    assert (own / "tokenizer.json").read_bytes() == before


def test_a_run_that_was_killed_before_it_had_a_manifest_is_resumed(tmp_path: Path) -> None:
    with killed_at(0, "tokenising") as progress:
        execute(tiny_recipe(tmp_path, versions=1), progress=progress)
    run = tmp_path / "runs" / "tiny"
    assert (run / "recipe.yaml").exists()
    assert not (run / "manifest.json").exists()
    assert main(["resume", str(run), "--quiet"]) == 0
    assert (run / "releases" / "v1" / "model.safetensors").exists()


def test_what_another_process_has_finished_meanwhile_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, versions=1)
    prepare = executor.prepare

    def slow(*arguments: object) -> object:
        monkeypatch.setattr(executor, "prepare", prepare)
        execute(recipe)  # from its start to its end while this one prepares
        return prepare(*arguments)

    monkeypatch.setattr(executor, "prepare", slow)
    execute(recipe)
    segments = UpdateFolder(tmp_path / "runs" / "tiny").manifest["segments"].values()
    assert [segment["repeated_steps"] for segment in segments] == [0] * len(segments)


@pytest.mark.parametrize("after", range(3))
def test_a_disk_that_is_full_of_a_tokenizer_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    saves: list[str] = []
    save = PreTrainedTokenizerFast.save_pretrained

    def fail(tokenizer: PreTrainedTokenizerFast, folder: str) -> object:
        saves.append(folder)
        if len(saves) == after + 1:
            raise Exception("No space left on device (os error 28)")
        return save(tokenizer, folder)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    recipe = tiny_recipe(tmp_path, versions=1, paradigm="ptfs")
    with pytest.raises(RunError, match="the disk is full while writing"):
        execute(recipe)
    execute(recipe)
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]
