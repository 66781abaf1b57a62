"""What each step of a run depends on: all that changes its result, and nothing else, changes its fingerprint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy
import torch

from everlearn import devices
from everlearn.artifacts import Artifact
from everlearn.errors import ModelError
from everlearn.files import read_vouched, write_vouched
from everlearn.models import loading
from everlearn.progress import LineProgress
from everlearn.recipe import Recipe, make_recipe
from everlearn.runs import loop, measure, publish
from everlearn.runs.formats import formats_of
from everlearn.store import RunStore
from everlearn.training import memory
from tests.runs.test_loop import tiny_recipe

Plan = Callable[[Recipe], dict[str, str]]
MEASURED = ".*/predictions/.*"
TRAINED = "stages/0[123].*"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The fingerprints of a run's steps by place, but for the rows that it keeps; no step is made."""
    found: dict[str, str] = {}

    def note(store: RunStore, place: str, fingerprint: str, *_: object, **__: object) -> Artifact:
        if "/data/" not in place:
            found[place] = fingerprint
        return Artifact(store.folder / place, fingerprint)

    monkeypatch.setattr(RunStore, "_find_or_make", note)
    for module, name, value in (
        (measure, "read_jsonl", []),
        (measure, "read_mapping", {}),
        (measure.Measurement, "_summarise", ({}, {})),
        (measure.Measurement, "line", ""),
        (loop, "read_json", {}),
        (loop, "sha256_of", ""),
        (publish, "publish", None),
        (loop, "claim", None),
        (loop, "take", None),
        (safetensors.numpy, "load_file", {}),
    ):
        monkeypatch.setattr(module, name, lambda *_, value=value, **__: value)

    def plan(recipe: Recipe) -> dict[str, str]:
        found.clear()
        loop.execute(recipe)
        return dict(found)

    return plan


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {place for place in before if before[place] != after.get(place)}


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("seed", 7, f"{TRAINED}|{MEASURED}"),
        ("model", {"lora": {"rank": 2}}, TRAINED),
        ("model", {"template": "alpaca"}, f"{TRAINED}|{MEASURED}"),
        ("model", {"device": "cpu"}, ""),
        ("method", {"strength": 0.5}, "stages/01.*/state|stages/0[23].*"),
        ("training", {"epochs": 2}, TRAINED),
        ("training", {"checkpoint_every": 3}, ""),
        ("training", {"too_long": "leave_out"}, ""),
        ("evaluation", {"max_new_tokens": 7}, MEASURED),
        ("evaluation", {"bootstrap_samples": 101}, f"{MEASURED}|.*/general"),
        ("evaluation", {"unseen_tasks": False}, "stages/0[12].*/predictions/places|stages/01.*/predictions/animals"),
        ("evaluation", {"general_text": "text.txt"}, ".*/general"),
        ("name", "other", ""),
    ],
)
def test_a_changed_key_repeats_the_steps_that_depend_on_it(
    section: str, change: object, expected: str, tmp_path: Path, tiny_model: Path, planned: Plan
) -> None:
    (tmp_path / "text.txt").write_text("A passage.\n")
    tree = tiny_recipe(tmp_path, tiny_model, method={"name": "l2"}).model_dump(mode="json")
    if isinstance(change, dict):
        change = tree[section] | {key: str(tmp_path / v) if v == "text.txt" else v for key, v in change.items()}
    before, after = planned(make_recipe(tree)), planned(make_recipe({**tree, section: change}))
    assert len(before) == 4 * (3 + 1) + 3 * 2  # tasks and general ability; training and state
    assert changed(before, after) == {place for place in before if re.fullmatch(expected, place)}


@pytest.mark.parametrize(("method", "expected"), [("sequential", TRAINED), ("single_task", "stages/01.*")])
def test_a_stage_depends_on_those_before_it_where_it_starts_from_them(
    method: str, expected: str, tmp_path: Path, tiny_model: Path, planned: Plan
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, method=method)
    before = planned(recipe)
    with (tmp_path / "data" / "colours.train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Say.", "input": "one more", "output": "colours 1"}) + "\n")
    assert changed(before, planned(recipe)) == {place for place in before if re.fullmatch(expected, place)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("train", "stages/0[23].*"),
        ("evaluation", ".*/predictions/animals|stages/0[23].*/state"),
    ],
)
def test_a_changed_row_repeats_the_steps_that_read_it(
    kind: str, expected: str, tmp_path: Path, tiny_model: Path, planned: Plan
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model, method={"name": "l2"})
    before = planned(recipe)
    with (tmp_path / "data" / f"animals.{kind}.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Say.", "input": "one more", "output": "animals 1"}) + "\n")
    after = planned(recipe)
    assert changed(before, after) == {place for place in before if re.fullmatch(expected, place)}


def test_another_metric_scores_its_task_again_and_trains_nothing(
    tmp_path: Path, tiny_model: Path, planned: Plan
) -> None:
    tree = tiny_recipe(tmp_path, tiny_model).model_dump(mode="json")
    before = planned(make_recipe(tree))
    tree["stream"]["tasks"][1]["metric"] = "token_f1"
    assert changed(before, planned(make_recipe(tree))) == {
        place for place in before if re.fullmatch(".*/predictions/animals", place)
    }


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether the machine multiplies bfloat16 natively."""

    def set_to(native: bool) -> None:
        for module in (devices, loading):
            monkeypatch.setattr(module, "has_native_bfloat16", lambda _: native)

    return set_to


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs tell."""
    lines: list[str] = []
    monkeypatch.setattr(LineProgress, "say", lambda _, line: lines.append(line))
    return lines


def in_formats(folder: Path, model: Path, written: str, name: str) -> Recipe:
    tree = tiny_recipe(folder, model, method={"name": "l2"}).model_dump(mode="json")
    tree["model"]["dtype"] = tree["training"]["precision"] = written
    return make_recipe({**tree, "name": name})


def test_auto_is_hashed_as_what_it_means(tmp_path: Path, tiny_model: Path, planned: Plan, on_machine) -> None:
    found = {}
    for native, means in ((True, "bfloat16"), (False, "float32")):
        on_machine(native)
        found[means] = planned(in_formats(tmp_path, tiny_model, "auto", f"auto-{means}"))
        assert planned(in_formats(tmp_path, tiny_model, means, means)) == found[means]
    assert changed(found["bfloat16"], found["float32"]) == set(found["float32"])


def test_what_auto_meant_where_a_run_began_holds_where_it_goes_on(
    tmp_path: Path, tiny_model: Path, planned: Plan, on_machine, said: list[str]
) -> None:
    on_machine(True)
    recipe = in_formats(tmp_path, tiny_model, "auto", "run")
    begun = planned(recipe)
    manifest = read_vouched(tmp_path / "runs" / "run" / "manifest.json")
    assert manifest["formats"] == {"dtype": "bfloat16", "precision": "bfloat16", "gradient_checkpointing": False}
    assert not any("auto goes on" in line for line in said)
    on_machine(False)
    assert planned(recipe) == begun
    assert (
        "auto goes on meaning bfloat16 weights and bfloat16 steps, as where this run began "
        "(a new run would mean float32 weights and float32 steps here)"
    ) in said


def test_recomputation_is_decided_by_the_memory_where_a_run_begins_and_hashed_as_decided(
    tmp_path: Path, tiny_model: Path, planned: Plan, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(name: str, asked: object) -> Recipe:
        tree = tiny_recipe(tmp_path, tiny_model, method={"name": "l2"}).model_dump(mode="json")
        tree["training"] |= {"gradient_checkpointing": asked, "precision": "float32"}
        return make_recipe({**tree, "name": name})

    found = {asked: planned(recipe(f"asked-{asked}", asked)) for asked in (False, True)}
    assert changed(found[False], found[True])
    assert planned(recipe("roomy", "auto")) == found[False]
    assert not any("recomputes activations" in line for line in said)
    with monkeypatch.context() as small:
        small.setattr(memory, "free_bytes", lambda device: 1 << 20)
        assert planned(recipe("tight", "auto")) == found[True]
        assert any("recomputes activations" in line and "gradient_checkpointing: auto" in line for line in said)
        assert planned(recipe("roomy", "auto")) == found[False], "what was decided holds"
    assert planned(recipe("tight", "auto")) == found[True]
    begun_before = {"formats": {"dtype": "float32", "precision": "float32"}}
    assert not formats_of(recipe("old", "auto"), begun_before, 1024).recomputes


def test_a_run_of_an_earlier_release_is_hashed_as_written_and_told_so(
    tmp_path: Path, tiny_model: Path, planned: Plan, on_machine, said: list[str]
) -> None:
    on_machine(True)
    recipe = in_formats(tmp_path, tiny_model, "auto", "old")
    recorded = planned(in_formats(tmp_path, tiny_model, "auto", "new"))
    folder = tmp_path / "runs" / "old"
    folder.mkdir()
    write_vouched(folder / "manifest.json", {"kind": "run", "steps": {"stages/01-colours/training": {}}})
    old = planned(recipe)
    assert any("did not record what auto (model.dtype, training.precision) meant: what" in line for line in said)
    assert changed(recorded, old) == set(old)
    on_machine(False)
    assert planned(recipe) == old, "nothing that stands is made again"
    assert "formats" not in read_vouched(folder / "manifest.json")


def test_a_machine_that_cannot_compute_in_a_runs_format_is_refused(
    tmp_path: Path, tiny_model: Path, on_machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(False)

    def no_such_numbers(*_: object, dtype: torch.dtype, **__: object) -> torch.Tensor:
        raise TypeError(f"no {dtype} here")

    monkeypatch.setattr(torch, "ones", no_such_numbers)
    manifest = {"formats": {"dtype": "bfloat16", "precision": "bfloat16"}}
    with pytest.raises(ModelError, match=r"begun in bfloat16 weights .*, and cpu cannot compute in bfloat16: go on"):
        formats_of(in_formats(tmp_path, tiny_model, "auto", "run"), manifest)
