"""Runs of version updates: the plan carried out, killed and resumed, versions added, releases usable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from everlearn.cli.update_tables import run_tables
from everlearn.errors import RunError
from everlearn.files import unfinished
from everlearn.training import checkpoint
from everlearn.training import text as pretraining
from everlearn.training.processes import Processes
from everlearn.updates.executor import execute
from everlearn.updates.growth import longer
from tests.killed import killed_at
from tests.updates.tiny_runs import MODEL, tiny_recipe


@pytest.fixture(autouse=True)
def flush_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "FLUSH_STEPS", 2)


def histories(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    found = {}
    for path in sorted((folder / "segments").glob("*/history.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [(row["step"], row["loss"], row["learning_rate"]) for row in rows]
    return found


def releases(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path / "model.safetensors") for path in sorted((folder / "releases").iterdir())}


def same_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("paradigm", ["ptfs", "cpt", "path_switching"])
def test_executed_work_agrees_with_the_plan(tmp_path: Path, paradigm: str) -> None:
    result = execute(tiny_recipe(tmp_path, paradigm=paradigm))
    plan = json.loads((tmp_path / "runs" / "tiny" / "plan.json").read_text())
    ledger = result["ledger"]
    assert [row["executed_steps"] for row in ledger["segments"]] == [s["steps"] for s in plan["segments"]]
    planned = next(cost for cost in ledger["costs"] if cost["paradigm"] == paradigm)
    executed = ledger["executed"]
    assert (executed["steps"], executed["tokens"], executed["flops"]) == tuple(
        planned[key] for key in ("steps", "tokens", "flops")
    )
    logged = histories(tmp_path / "runs" / "tiny")
    for segment in plan["segments"]:
        assert len(logged[segment["id"]]) == segment["steps"]


def test_executed_rates_are_the_planned_ones(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    execute(recipe)
    plan = json.loads((tmp_path / "runs" / "tiny" / "plan.json").read_text())
    steps = tuple(version["steps"] for version in plan["versions"])
    logged = histories(tmp_path / "runs" / "tiny")
    for segment in recipe.version_plan(steps).segments():
        peak = recipe.schedule.maximal_rate
        assert [rate for _, _, rate in logged[segment.id]] == [
            pytest.approx(peak * segment.schedule(step), rel=1e-12, abs=1e-18) for step in range(segment.steps)
        ]


@pytest.mark.parametrize("reports", [1, 2, 4, 7, 10])
def test_a_killed_run_goes_on_with_the_same_losses_bit_by_bit(tmp_path: Path, reports: int) -> None:
    whole, killed = tmp_path / "whole" / "runs" / "tiny", tmp_path / "killed" / "runs" / "tiny"
    execute(tiny_recipe(tmp_path / "whole"))
    with killed_at(reports) as progress:
        execute(tiny_recipe(tmp_path / "killed"), progress=progress)
    result = execute(tiny_recipe(tmp_path / "killed"))
    assert histories(whole) == histories(killed)
    for name, tensors in releases(whole).items():
        assert same_tensors(tensors, releases(killed)[name])
    executed = result["ledger"]["executed"]
    assert executed["steps"] == sum(len(rows) for rows in histories(whole).values())
    assert executed["repeated_steps"] > 0


def test_dropout_goes_on_as_well(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.2}
    execute(tiny_recipe(tmp_path / "whole", model={"config": gpt2}))
    with killed_at(4) as progress:
        execute(tiny_recipe(tmp_path / "killed", model={"config": gpt2}), progress=progress)
    execute(tiny_recipe(tmp_path / "killed", model={"config": gpt2}))
    whole, killed = (tmp_path / name / "runs" / "tiny" for name in ("whole", "killed"))
    assert histories(whole) == histories(killed)


@pytest.mark.parametrize(
    ("paradigm", "trained"),
    [("path_switching", ["m3b", "m4a", "b4"]), ("cpt", ["c4"]), ("ptfs", ["s4"])],
)
def test_adding_a_version_trains_only_what_is_new(tmp_path: Path, paradigm: str, trained: list[str]) -> None:
    whole, growing = tmp_path / "whole" / "runs" / "tiny", tmp_path / "growing" / "runs" / "tiny"
    execute(tiny_recipe(tmp_path / "whole", paradigm=paradigm, versions=4))
    execute(tiny_recipe(tmp_path / "growing", paradigm=paradigm, versions=3))
    before = set(histories(growing))
    for text in ("text1.txt", "text2.txt", "text3.txt"):  # long gone when the fourth version comes
        (tmp_path / "growing" / text).unlink()
    result = execute(longer(growing, str(tmp_path / "whole" / "text4.txt")), folder=growing)
    assert "v4" in run_tables(growing, result)
    assert set(histories(growing)) - before == set(trained)
    assert histories(growing) == histories(whole)
    assert same_tensors(releases(whole)["v4"], releases(growing)["v4"])
    ledger = json.loads((growing / "ledger.json").read_text())
    assert ledger["executed"] | {"seconds": 0} == json.loads((whole / "ledger.json").read_text())["executed"] | {
        "seconds": 0
    }


def test_states_that_nothing_starts_from_are_removed(tmp_path: Path) -> None:
    kept = {}
    for name, changes in {
        "lazy": {},
        "eager": {"path": {"lazy": False}},
        "cpt": {"paradigm": "cpt"},
        "cpt that keeps its optimizer": {"paradigm": "cpt", "path": {"cpt_optimizer": "inherit"}},
        "ptfs": {"paradigm": "ptfs"},
    }.items():
        execute(tiny_recipe(tmp_path / name, **changes))
        run = tmp_path / name / "runs" / "tiny"
        kept[name] = sorted(path.name for path in (run / "states").glob("*"))
        assert not list((run / "segments").glob("*/checkpoint"))
    assert kept == {
        "lazy": ["m3a"],
        "eager": ["m3b"],
        "cpt": [],
        "cpt that keeps its optimizer": ["c3"],
        "ptfs": [],
    }


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path))
    run = tmp_path / "runs" / "tiny"
    for name in ("segments/b1/checkpoint", "releases/v1", "tokenizer", "states/m3a"):
        unfinished(run / name).mkdir(parents=True)
    execute(tiny_recipe(tmp_path))
    assert not [path for path in run.rglob(".*") if path.is_dir()]
    assert sorted(path.name for path in (run / "releases").iterdir()) == ["v1", "v2", "v3"]


def test_a_branch_inherits_the_moments_of_the_main_path_or_starts_with_none(tmp_path: Path) -> None:
    losses = {}
    for choice in ("inherit", "reset"):
        execute(tiny_recipe(tmp_path / choice, path={"branch_optimizer": choice}))
        losses[choice] = [loss for _, loss, _ in histories(tmp_path / choice / "runs" / "tiny")["b3"]]
    assert losses["inherit"][0] == losses["reset"][0]
    assert losses["inherit"][2:] != losses["reset"][2:]


def test_the_branch_and_the_main_tail_read_the_same_blocks(tmp_path: Path) -> None:
    """With the same constant rate, branch and tail are the same computation."""
    execute(tiny_recipe(tmp_path, schedule={"name": "constant", "maximal_rate": 1e-2, "warm_up_steps": 2}))
    found = histories(tmp_path / "runs" / "tiny")
    assert found["b1"] == found["m1b"]
    assert found["b2"] == found["m2b"]


def test_micro_batches_do_not_change_the_loss(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path / "whole"))
    execute(tiny_recipe(tmp_path / "parts", training={"micro_batch_blocks": 5}))
    one, two = (histories(tmp_path / name / "runs" / "tiny") for name in ("whole", "parts"))
    for segment, rows in one.items():
        assert [loss for _, loss, _ in two[segment]] == pytest.approx([loss for _, loss, _ in rows], abs=2e-5)


def test_a_release_is_a_plain_folder_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    execute(tiny_recipe(tmp_path))
    folder = tmp_path / "runs" / "tiny" / "releases" / "v2"
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The sun moon", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] == ids.shape[1] + 3


@pytest.mark.parametrize(("code", "said"), [(28, "the disk is full while writing"), (13, "cannot write .*denied")])
def test_a_state_or_release_that_cannot_be_written_is_said_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: Permission denied (os error {code})")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    monkeypatch.setattr(checkpoint, "save_file", fail)
    weights = dict(torch.nn.Linear(2, 2).named_parameters())
    with pytest.raises(RunError, match=said):
        checkpoint.save_state(tmp_path / "state", weights, {}, Processes(torch.device("cpu")))
    with pytest.raises(RunError, match=said):
        execute(tiny_recipe(tmp_path, versions=1, paradigm="ptfs", training={"checkpoint_every": 1000}))


def test_starting_from_a_model_keeps_its_weights_and_tokenizer(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path / "first"))
    base = tmp_path / "first" / "runs" / "tiny" / "releases" / "v3"
    recipe = tiny_recipe(tmp_path / "second", versions=1)
    start = type(recipe.model)(start_from=str(base), rewarm=False)
    execute(recipe.model_copy(update={"model": start}))
    run = tmp_path / "second" / "runs" / "tiny"
    rows = histories(run)["m1a"]
    assert rows[0][2] == recipe.schedule.maximal_rate
    assert rows[0][1] < histories(tmp_path / "first" / "runs" / "tiny")["m1a"][0][1] - 1
    assert (run / "tokenizer" / "tokenizer.json").read_text() == (base / "tokenizer.json").read_text()


def test_an_annealing_mix_is_read_by_appended_branches(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, path={"placement": "append", "annealing": str(tmp_path / "text1.txt")})
    execute(recipe)
    plan = json.loads((tmp_path / "runs" / "tiny" / "plan.json").read_text())
    assert {s["data"] for s in plan["segments"] if s["kind"] == "branch"} == {"annealing"}


def test_quality_is_a_matrix_of_releases_by_versions(tmp_path: Path) -> None:
    quality = execute(tiny_recipe(tmp_path))["quality"]
    assert quality["releases"] == quality["versions"] == ["v1", "v2", "v3"]
    for row, ends in zip(quality["perplexity"], quality["intervals"], strict=True):
        for value, (low, high) in zip(row, ends, strict=True):
            assert low <= value <= high
    last = quality["perplexity"][-1]
    assert quality["own"]["v3"] == last[2]
    assert quality["seen"]["v3"] == pytest.approx((last[0] * last[1] * last[2]) ** (1 / 3))


def test_replay_in_the_branch_leaves_the_main_path_alone(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path / "plain"))
    execute(tiny_recipe(tmp_path / "replay", path={"branch_replay_ratio": 0.5}))
    plain, replay = (histories(tmp_path / name / "runs" / "tiny") for name in ("plain", "replay"))
    assert {name for name in plain if plain[name] != replay[name]} == {"b2", "b3"}


def test_every_release_is_asked_the_micro_tasks_where_that_is_wanted(tmp_path: Path) -> None:
    long = {"config": {**MODEL, "max_position_embeddings": 4096}, "vocabulary_size": 320}
    quality = execute(tiny_recipe(tmp_path, versions=2, model=long, quality={"microtasks": True}))["quality"]
    asked = quality["microtasks"]
    assert {name: found["rows"] for name, found in asked.items()} == {"v1": 200, "v2": 200}
