"""Merging through runs: what is measured and handed back, what goes on from where, what is refused and told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.errors import RecipeError
from everlearn.files import read_json, sha256_of
from everlearn.methods.registry import make_method
from everlearn.models.merges import Recipe, merged
from everlearn.runs.loop import execute
from tests.methods.contexts import Told
from tests.runs import test_publish as publish
from tests.runs.test_loop import TASKS, tiny_recipe


def run(folder: Path, base: Path, tuning: str = "lora", **options: object) -> tuple[Path, list[str]]:
    """The run's folder and what was said."""
    lora = {"rank": 2, "alpha": 3, "dropout": 0.0}
    recipe = tiny_recipe(
        folder,
        base,
        method={"name": "merging", **options},
        model={"base": str(base), "tuning": tuning, "lora": lora, "dtype": "float32", "device": "cpu"},
        evaluation={"max_new_tokens": 2, "bootstrap_samples": 100, "general": False, "unseen_tasks": False},
    )
    told = Told()
    return execute(recipe, progress=told).folder, told.said


def inner(run: Path, index: int, step: str, kind: str = "adapter") -> Path:
    return run / "stages" / f"{index:02d}-{TASKS[index - 1]}" / step / kind


def changes(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """What an adapter adds, by module."""
    settings = read_json(folder / "adapter_config.json")
    weights = load_file(folder / "adapter_model.safetensors")
    for name, a in weights.items():
        if "lora_A" in name:
            yield name, settings["lora_alpha"] / settings["r"] * weights[name.replace("lora_A", "lora_B")] @ a


def test_a_soup_of_adapters_is_the_mean_of_their_changes_from_the_second_stage_on(tmp_path, tiny_model) -> None:
    folder, said = run(tmp_path, tiny_model)
    assert not inner(folder, 1, "released").exists()
    for index in (2, 3):
        trained = [dict(changes(inner(folder, at, "training"))) for at in range(1, index + 1)]
        for name, change in changes(inner(folder, index, "released")):
            torch.testing.assert_close(change, torch.stack([one[name] for one in trained]).mean(0))
    assert (folder / "model" / "adapter_model.safetensors").read_bytes() == (
        inner(folder, 3, "released") / "adapter_model.safetensors"
    ).read_bytes()
    assert read_json(folder / "model" / "adapter_config.json")["r"] == 6
    assert not any("leaves" in line for line in said)


def test_what_is_measured_and_handed_back_is_the_merge(tmp_path: Path) -> None:
    base = publish.base(tmp_path / "base", publish.CHATML)
    model = {"base": str(base), "template": "chat", "dtype": "float32", "lora": {"rank": 4}}
    folders = {
        name: execute(publish.recipe_of(tmp_path / name, model, method=method)).folder
        for name, method in (("merged", {"name": "merging", "start": "base"}), ("alone", "single_task"))
    }
    rows = {name: publish.predictions(folder) for name, folder in folders.items()}
    answers = {name: [row["prediction"] for row in found] for name, found in rows.items()}
    assert answers["merged"] != answers["alone"]  # the model of the last task alone
    merged_run = folders["merged"]
    assert publish.answers_elsewhere(merged_run, tmp_path / "moved", rows["merged"]) == answers["merged"]


def test_each_stage_starts_from_what_the_options_name(tmp_path: Path, tiny_model: Path) -> None:
    chains = {
        name: run(tmp_path / name, tiny_model, **options)[0]
        for name, options in (
            ("previous", {}),
            ("base", {"start": "base"}),
            ("merged", {"use": "continue_from_merged"}),
        )
    }
    plain = execute(tiny_recipe(tmp_path / "plain", tiny_model, model=_model(tiny_model))).folder
    alone = execute(tiny_recipe(tmp_path / "alone", tiny_model, method="single_task", model=_model(tiny_model))).folder
    sums = {
        name: [sha256_of(inner(folder, at, "training") / "adapter_model.safetensors") for at in (1, 2, 3)]
        for name, folder in (chains | {"plain": plain, "alone": alone}).items()
    }
    assert sums["previous"] == sums["plain"]
    assert sums["base"] == sums["alone"]
    assert sums["merged"][:2] == sums["plain"][:2]
    assert sums["merged"][2] != sums["plain"][2]
    assert read_json(inner(chains["merged"], 3, "released") / "adapter_config.json")["r"] == 2


def _model(base: Path) -> dict[str, object]:
    lora = {"rank": 2, "alpha": 3, "dropout": 0.0}
    return {"base": str(base), "lora": lora, "dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize("how", ["soup", "arithmetic", "ties", "dare_linear", "dare_ties"])
def test_all_weights_are_merged_as_the_formula_has_it(tmp_path: Path, tiny_model: Path, how: str) -> None:
    folder, _ = run(tmp_path, tiny_model, "full", how=how)
    released = inner(folder, 3, "released", "model")
    found = load_file(released / "model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    trained = [load_file(inner(folder, at, "training", "model") / "model.safetensors") for at in (1, 2, 3)]
    assert found.keys() == trained[0].keys()
    assert not (released.parent / "base").exists()
    if how == "soup":
        expected = {name: torch.stack([one[name] for one in trained]).mean(0) for name in found}
    else:
        if how.startswith("dare"):  # which entries are dropped is its own affair
            assert all(torch.isfinite(value).all() for value in found.values())
            assert any(not torch.equal(found[name], base[name]) for name in found)
            return
        recipe = Recipe(how, {"arithmetic": 0.4, "ties": 1.0}[how], 0.2 if how == "ties" else 1.0)  # type: ignore[arg-type]
        change = merged(list(found), 3, lambda at, name: trained[at][name] - base[name], recipe)
        expected = {name: base[name] + change(name) for name in found}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_what_a_rank_leaves_out_is_said_and_a_merge_is_made_once(tmp_path, tiny_model, monkeypatch) -> None:
    folder, said = run(tmp_path, tiny_model, how="ties", rank=1)
    lines = [line for line in said if "leaves" in line]
    assert [line.partition(":")[0] for line in lines] == ["stage 02-animals", "stage 03-places"]
    assert read_json(inner(folder, 3, "released") / "adapter_config.json")["r"] == 1
    steps = read_json(folder / "manifest.json")["steps"]
    again, said = run(tmp_path, tiny_model, how="ties", rank=1)
    assert read_json(again / "manifest.json")["steps"] == steps
    assert not any("leaves" in line for line in said)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"use": "continue_from_merged", "start": "base"}, "start: base cannot hold"),
        ({"how": "soup", "density": 0.5}, "density is what ties or dare keeps"),
        ({"how": "arithmetic", "density": 0.5}, "density is what ties or dare keeps"),
        ({"how": "soup", "scale": 0.5}, "scale is a factor of changes"),
        ({"how": "average"}, "how"),
        ({"how": "ties", "density": 0}, "density"),
        ({"rank": 0}, "rank"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, why: str) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        make_method("merging", options)
    assert "\n" not in str(caught.value)


def test_a_rank_of_whole_models_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match="rank is that of a merged adapter"):
        run(tmp_path, tiny_model, "full", rank=4)
