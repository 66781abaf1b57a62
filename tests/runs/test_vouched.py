"""Every file of a finished run is vouched for by the manifest, or named here with the reason why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.artifacts import RECORD, read_record
from everlearn.errors import RunError
from everlearn.files import read_mapping, read_vouched, sha256_of, write_json
from everlearn.report.facts.reading import read_run
from everlearn.runs.loop import execute
from everlearn.runs.mending import examine
from tests.runs.test_loop import tiny_recipe

WITH_THEIR_OWN_SUM = {"manifest.json", "matrix.json", "metrics.json", "lineage.json", "probing.json"}
EXCEPTIONS = {
    ".lock": "is empty",
    "report.html": "shows what stands elsewhere, and is made again from it",
    "run.log": "is for people to read; nothing reads it",
    "vllm.log": "the same, of a vLLM that was started for the run",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run with a method's state, rehearsed rows and a bad row."""
    folder = tmp_path_factory.mktemp("vouched")
    recipe = tiny_recipe(folder, tiny_model, method=[{"name": "random_rehearsal", "ratio": 0.5}, {"name": "l2"}])
    with (folder / "data" / "colours.train.jsonl").open("a") as file:
        file.write('{"instruction": "Say."}\n')
    stream = recipe.stream.model_copy(update={"bad_rows": "tolerant"})
    return execute(recipe.model_copy(update={"stream": stream})).folder


def unvouched(run: Path) -> list[str]:
    """Files of a finished run that nothing vouches for."""
    manifest = read_vouched(run / "manifest.json")
    sums = {**manifest["rows"], **manifest["files"]}
    for place, step in manifest["steps"].items():
        record = read_record(run / place)
        assert record is not None
        assert {name: size for name, (size, _) in record.files.items()} == step["files"]
        sums |= {f"{place}/{name}": digest for name, (_, digest) in record.files.items()}
        sums[f"{place}/{RECORD}"] = step["record"]
    artifacts = {(run / name).stat().st_ino for name in sums}
    strange = []
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if name in sums:
            assert sums[name] == sha256_of(path), name
        elif name in WITH_THEIR_OWN_SUM:
            assert len(read_mapping(path)) == len(read_vouched(path)) + 1, name
        elif name.startswith(".own/"):
            assert path.stat().st_ino in artifacts, f"{name} is a second name of an artifact's file"
        elif name not in EXCEPTIONS:
            strange.append(name)
    return strange


def test_every_file_is_vouched_for(run: Path) -> None:
    assert not unvouched(run)
    manifest = read_vouched(run / "manifest.json")
    assert {"recipe.yaml", "bad_rows.jsonl", "model/adapter_model.safetensors"} <= set(manifest["files"])
    assert "stages/02-animals/scores.json" in manifest["rows"]


@pytest.mark.parametrize("name", ["stages/01-colours/scores.json", f"stages/01-colours/predictions/colours/{RECORD}"])
def test_a_changed_file_is_refused_by_the_report(run: Path, name: str) -> None:
    path, before = run / name, (run / name).read_bytes()
    path.unlink()  # its other names are those of the cache
    try:
        write_json(path, {**json.loads(before), "seconds": 1.5})
        with pytest.raises(RunError, match=rf"{name} is corrupt \(it was changed after .* 'everlearn resume"):
            read_run(run)
    finally:
        path.write_bytes(before)
    read_run(run)


def test_a_changed_recipe_and_a_missing_card_are_told_by_the_doctor(run: Path) -> None:
    recipe, card = (run / "recipe.yaml").read_text(), (run / "model" / "README.md").read_text()
    (run / "recipe.yaml").write_text(recipe + "\n")
    (run / "model" / "README.md").unlink()
    try:
        remarks = examine(run).remarks
    finally:
        (run / "recipe.yaml").write_text(recipe)
        (run / "model" / "README.md").write_text(card)
    assert f"{run / 'recipe.yaml'} is not as everlearn wrote it: take the change back." in remarks
    assert f"{run / 'model' / 'README.md'} is missing: 'everlearn resume {run}' writes it again." in remarks
    assert not examine(run).remarks
