"""Merges against the golden vectors, and adapters and models merged as folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.files import read_json, write_json
from everlearn.models.merges import (
    How,
    Recipe,
    agreeing_mean,
    dropped,
    elected_signs,
    merge_adapters,
    merge_models,
    merged,
    trim_threshold,
)

MODULE = "base_model.model.layers.0.q_proj."


def golden(golden_dir: Path, method: str) -> list[dict]:
    cases = json.loads((golden_dir / "baselines" / "merges.json").read_text())["cases"]
    found = [case for case in cases if case["method"] == method]
    assert found
    return found


def tensors(values: list) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def merge(values: list[torch.Tensor], how: How, **options: float) -> torch.Tensor:
    return merged(["w"], len(values), lambda at, _: values[at], Recipe(how, **options))("w")


def test_soups_and_weighted_sums_are_those_of_the_golden_vectors(golden_dir: Path) -> None:
    for case in golden(golden_dir, "soup"):
        values = tensors(case["tensors"])
        for count, expected in enumerate(tensors(case["expected_running"]), 1):
            torch.testing.assert_close(merge(values[:count], "soup"), expected, rtol=0, atol=1e-6)
    for case in golden(golden_dir, "linear"):
        weighted = [w * value for w, value in zip(case["weights"], tensors(case["tensors"]), strict=True)]
        expected = torch.tensor(case["expected"], dtype=torch.float64)
        torch.testing.assert_close(merge(weighted, "arithmetic"), expected, rtol=0, atol=1e-6)
        assert torch.allclose(merge(weighted, "arithmetic", scale=0.5), expected / 2)


def test_ties_is_that_of_the_authors_code_trimming_over_the_whole_model(golden_dir: Path) -> None:
    for case in golden(golden_dir, "ties_full_model"):
        vectors = tensors(case["task_vectors"])
        expected = torch.tensor(case["expected_merged_task_vector"], dtype=torch.float64)
        if case["keep_share"] is None:
            signs = elected_signs(vectors, float(torch.stack(vectors).sum(0).sign().sum().sign()))
            torch.testing.assert_close(agreeing_mean(vectors, signs), expected, rtol=0, atol=1e-6)
            continue
        recipe = Recipe("ties", case["scale"], case["keep_share"])
        for cut in (1, 3, len(vectors[0])):  # however the model is divided into tensors
            parts = {"a": slice(0, cut), "b": slice(cut, None)}
            names = [name for name, part in parts.items() if vectors[0][part].numel()]
            change = merged(names, len(vectors), lambda at, name, v=vectors, p=parts: v[at][p[name]], recipe)
            found = torch.cat([change(name) for name in names])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_dare_is_that_of_the_authors_code_with_its_masks_given(golden_dir: Path) -> None:
    for case in golden(golden_dir, "dare_drop_rescale"):
        value, kept = tensors([case["tensor"], case["keep_mask"]])
        expected = torch.tensor(case["expected"], dtype=torch.float64)
        torch.testing.assert_close(dropped(value, kept, 1 - case["drop_rate"]), expected, rtol=0, atol=1e-6)
    for case in golden(golden_dir, "dare_linear"):
        values, masks = tensors(case["tensors"]), tensors(case["masks"])
        left = [dropped(value, mask, case["density"]) for value, mask in zip(values, masks, strict=True)]
        found = merge([w * one for w, one in zip(case["weights"], left, strict=True)], "arithmetic")
        torch.testing.assert_close(found, torch.tensor(case["expected"], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["dare_linear", "dare_ties"])
def test_dare_keeps_the_change_in_the_mean_and_draws_by_its_seed_alone(how: How) -> None:
    value = torch.full((400, 100), 2.0)
    one = merge([value], how, density=0.25, seed=3)
    assert set(one.unique().tolist()) == {0.0, 8.0}
    assert one.mean().item() == pytest.approx(2.0, rel=0.03)
    assert torch.equal(one, merge([value], how, density=0.25, seed=3))
    assert not torch.equal(one, merge([value], how, density=0.25, seed=4))
    two = merged(["w"], 2, lambda at, _: value, Recipe("dare_linear", density=0.25, seed=3))("w")
    assert 4.0 in (two / 2).unique()  # the two lose different entries


def test_a_threshold_keeps_the_largest_and_all_where_all_are_to_be_kept() -> None:
    values = torch.arange(1.0, 11.0)
    assert [int((values >= trim_threshold(values, share)).sum()) for share in (0.2, 0.55, 1.0)] == [3, 6, 10]


def adapter(folder: Path, a: list, b: list, scale: float) -> Path:
    """A folder with an adapter of one module."""
    folder.mkdir(parents=True)
    weights = {f"{MODULE}lora_A.weight": torch.tensor(a), f"{MODULE}lora_B.weight": torch.tensor(b)}
    save_file(weights, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"r": len(a), "lora_alpha": scale * len(a), "peft_type": "LORA"})
    return folder


def change_of(folder: Path) -> torch.Tensor:
    settings = read_json(folder / "adapter_config.json")
    weights = load_file(folder / "adapter_model.safetensors")
    a, b = weights[f"{MODULE}lora_A.weight"], weights[f"{MODULE}lora_B.weight"]
    assert a.shape[0] == b.shape[1] == settings["r"]
    return settings["lora_alpha"] / settings["r"] * b @ a


def test_the_products_of_adapters_are_merged_and_not_a_and_b_apart(golden_dir: Path, tmp_path: Path) -> None:
    for number, case in enumerate(golden(golden_dir, "adapters")):
        scales = [weight * scale for weight, scale in zip(case["weights"], case["scaling"], strict=True)]
        root = tmp_path / str(number)
        pairs = enumerate(zip(case["A"], case["B"], scales, strict=True))
        folders = [adapter(root / str(at), a, b, scale) for at, (a, b, scale) in pairs]
        expected = torch.tensor(case["expected_exact_weighted_delta"])
        total = sum(len(a) for a in case["A"])
        for rank in (None, total, min(expected.shape)):
            target = root / f"rank-{rank}"
            left = merge_adapters(folders, target, Recipe("arithmetic"), rank)
            assert left == pytest.approx(1.0)
            torch.testing.assert_close(change_of(target), expected, rtol=0, atol=1e-4)
        assert not torch.allclose(expected, torch.tensor(case["expected_delta_linear"]), atol=1e-2)
        left = merge_adapters(folders, root / "one", Recipe("arithmetic"), 1)
        u, s, v = torch.linalg.svd(expected)
        torch.testing.assert_close(change_of(root / "one"), s[0] * torch.outer(u[:, 0], v[0]), rtol=0, atol=1e-4)
        assert left == pytest.approx(float(s[0] ** 2 / s.square().sum()), abs=1e-5)


def test_ties_of_adapters_is_ties_of_their_products(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    folders = [
        adapter(
            tmp_path / str(at),
            torch.randn(2, 5, generator=draw).tolist(),
            torch.randn(4, 2, generator=draw).tolist(),
            at + 1.0,
        )
        for at in range(2)
    ]
    expected = merge([change_of(folder) for folder in folders], "ties", density=0.4)
    left = merge_adapters(folders, tmp_path / "merged", Recipe("ties", density=0.4), None)
    assert left == pytest.approx(1.0)  # rank 4 is all that a matrix of four rows can have
    torch.testing.assert_close(change_of(tmp_path / "merged"), expected)


@pytest.mark.parametrize("how", ["soup", "arithmetic", "ties"])
def test_models_are_merged_tensor_by_tensor_whatever_files_they_stand_in(tmp_path: Path, how: How) -> None:
    draw = torch.Generator().manual_seed(0)
    models = [{name: torch.randn(4, 3, generator=draw) for name in "ab"} for _ in range(3)]
    for at, (name, weights) in enumerate(zip(("base", "one", "two"), models, strict=True)):
        folder = tmp_path / name
        folder.mkdir()
        count = {"step": torch.tensor([at])}
        if name == "one":  # in one file
            save_file(weights | count, folder / "model.safetensors")
        else:
            save_file({"a": weights["a"]} | count, folder / "model-1.safetensors")
            save_file({"b": weights["b"]}, folder / "model-2.safetensors")
    base, one, two = models
    folders = [tmp_path / "one", tmp_path / "two"]
    recipe = Recipe(how, 0.5 if how == "arithmetic" else 1.0, 0.5 if how == "ties" else 1.0)
    merge_models(folders, None if how == "soup" else tmp_path / "base", tmp_path / "merged", recipe)
    found = {k: v for file in (tmp_path / "merged").iterdir() for k, v in load_file(file).items()}
    changes = [torch.cat([model[name] - base[name] for name in "ab"]) for model in (one, two)]
    expected = torch.cat([base[name] for name in "ab"]) + (
        merge(changes, "soup") if how == "soup" else merge(changes, how, scale=recipe.scale, density=recipe.density)
    )
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), expected)
    assert found["step"].item() == 2
