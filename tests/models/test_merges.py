"""Merges against the golden vectors, and adapters and models merged as folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.errors import ModelError
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


@pytest.mark.parametrize("method", ["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"])
def test_pefts_merges_of_one_tensor_are_those_of_the_golden_vectors(
    golden_dir: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told of PEFT's merges holds for the release that is installed."""
    from peft.utils import merge_utils

    function = {"linear": merge_utils.task_arithmetic}.get(method) or getattr(merge_utils, method)
    for case in golden(golden_dir, method):
        options = {key: case[key] for key in ("density", "majority_sign_method") if key in case}
        masks = iter(tensors(case.get("masks", [])))
        monkeypatch.setattr(torch, "bernoulli", lambda *_, masks=masks: next(masks))
        found = function(tensors(case["tensors"]), torch.tensor(case["weights"], dtype=torch.float64), **options)
        torch.testing.assert_close(found, torch.tensor(case["expected"], dtype=torch.float64), rtol=0, atol=1e-6)


def test_ties_without_trimming_differs_from_pefts_in_the_weights_and_tied_votes_alone(golden_dir: Path) -> None:
    for case in golden(golden_dir, "dare_ties"):
        values, masks = tensors(case["tensors"]), tensors(case["masks"])
        left = [dropped(value, mask, case["density"]) for value, mask in zip(values, masks, strict=True)]
        signs = elected_signs(left, 1.0)  # PEFT: a vote that is tied is won by +
        weighted = [weight * one for weight, one in zip(case["weights"], left, strict=True)]
        expected = torch.tensor(case["expected"], dtype=torch.float64)
        torch.testing.assert_close(agreeing_mean(weighted, signs), expected, rtol=0, atol=1e-6)
    for case in golden(golden_dir, "ties"):
        values, is_total = tensors(case["tensors"]), case["majority_sign_method"] == "total"
        kept = int(case["density"] * values[0].numel())
        trimmed = []
        for value in values:  # PEFT keeps so many of each tensor, the authors one more of the whole model
            places = value.abs().flatten().topk(kept).indices
            trimmed.append(
                torch.zeros_like(value).flatten().index_copy(0, places, value.flatten()[places]).view_as(value)
            )
        signs = elected_signs(trimmed if is_total else [value.sign() for value in trimmed], 1.0)
        weighted = [weight * one for weight, one in zip(case["weights"], trimmed, strict=True)]
        expected = torch.tensor(case["expected"], dtype=torch.float64)
        torch.testing.assert_close(agreeing_mean(weighted, signs), expected, rtol=0, atol=1e-6)


def test_pefts_merge_of_a_and_b_apart_is_not_the_sum_of_products_and_its_others_are(golden_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model

    for case in golden(golden_dir, "adapters"):
        a, b = [torch.tensor(one) for one in case["A"]], [torch.tensor(one) for one in case["B"]]
        layer = torch.nn.Linear(a[0].shape[1], b[0].shape[0], bias=False)
        model = None
        for at, scale in enumerate(case["scaling"]):
            settings = LoraConfig(r=len(a[at]), lora_alpha=scale * len(a[at]), target_modules=["0"])
            if model is None:
                model = get_peft_model(torch.nn.Sequential(layer), settings, adapter_name=str(at))
            else:
                model.add_adapter(str(at), settings)
        wrapped = model.base_model.model[0]  # type: ignore[union-attr]
        for at in range(len(a)):
            wrapped.lora_A[str(at)].weight.data, wrapped.lora_B[str(at)].weight.data = a[at], b[at]
        for how in ("linear", "cat", "svd"):
            names = [str(at) for at in range(len(a))]
            model.add_weighted_adapter(names, case["weights"], how, combination_type=how, svd_rank=case["svd_rank"])
            expected = torch.tensor(case[f"expected_delta_{how}"])
            torch.testing.assert_close(wrapped.get_delta_weight(how).detach(), expected, rtol=0, atol=1e-5)


def test_an_adapter_that_scales_by_the_root_of_its_rank_is_merged_as_it_computes(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(2)
    matrices = [torch.randn(size, generator=draw).tolist() for size in ((4, 5), (6, 4), (2, 5), (6, 2))]
    rooted, plain = adapter(tmp_path / "rooted", *matrices[:2], 3.0), adapter(tmp_path / "plain", *matrices[2:], 0.5)
    settings = read_json(rooted / "adapter_config.json")
    write_json(rooted / "adapter_config.json", {**settings, "use_rslora": True})  # type: ignore[dict-item]
    scale = settings["lora_alpha"] / 2  # type: ignore[index, call-overload]
    expected = scale * torch.tensor(matrices[1]) @ torch.tensor(matrices[0]) + change_of(plain)
    for order in ([rooted, plain], [plain, rooted]):
        target = tmp_path / f"first-{order[0].name}"
        merge_adapters(order, target, Recipe("arithmetic"), None)
        torch.testing.assert_close(change_of(target), expected)
        assert not read_json(target / "adapter_config.json")["use_rslora"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("rank_pattern", {"q": 1}),
        ("alpha_pattern", {"q": 1}),
        ("peft_type", "IA3"),
    ],
)
def test_adapters_that_add_more_than_one_multiple_of_a_product_are_refused(tmp_path, key: str, value) -> None:
    folder = adapter(tmp_path / "one", [[1.0, 2.0]], [[1.0], [0.0]], 2.0)
    settings = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**settings, key: value})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match=rf"cannot be merged \({'IA3' if key == 'peft_type' else key}\)"):
        merge_adapters([folder], tmp_path / "merged", Recipe("soup"), None)
    assert not (tmp_path / "merged").exists()


def test_weights_that_are_tied_stay_tied_in_a_merge(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.tiny_models import save_tiny_model

    folders = [save_tiny_model(tmp_path / str(seed), seed=seed, tied=True) for seed in range(3)]
    merge_models(folders[1:], folders[0], tmp_path / "merged", Recipe("arithmetic", 0.5))
    base, one, two, found = (AutoModelForCausalLM.from_pretrained(at) for at in (*folders, tmp_path / "merged"))
    assert found.lm_head.weight is found.get_input_embeddings().weight
    words = [model.get_input_embeddings().weight.detach() for model in (base, one, two, found)]
    torch.testing.assert_close(words[3], words[0] + 0.5 * (words[1] - words[0]) + 0.5 * (words[2] - words[0]))


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
