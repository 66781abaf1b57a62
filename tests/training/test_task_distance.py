"""Distance of tasks, the strength that follows, and the pull, against the released code and its formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from everlearn.models import batching
from everlearn.models.loading import load_model
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training.rows import EncodedRow
from everlearn.training.similarity_pull import PUBLISHED_GATE, SimilarityPull, mean_squares, pulled_names, share_of_new
from everlearn.training.task_distance import (
    AT_ONCE,
    distance,
    distance_of_rows,
    pooled,
    projected,
    projection,
    strength,
)
from tests.methods.contexts import training_of

GOLDEN = Path(__file__).parents[1] / "golden" / "sers"


def cases(name: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in json.loads((GOLDEN / name).read_text())["cases"]]


@pytest.mark.parametrize("case", cases("distance_core.json"))
def test_the_distance_is_the_mean_over_quantiles_and_dimensions(case: dict) -> None:
    new, rehearsed = (torch.tensor(case[f"{name}_embeddings"]) for name in ("new", "replay"))
    assert distance(new, rehearsed) == pytest.approx(case["expected_distance"], abs=1e-5)
    assert distance(rehearsed, new) == distance(new, rehearsed)
    assert distance(new, new) == 0.0
    assert distance(new + 0.5, new) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("case", cases("distance_end_to_end.json"))
def test_states_are_pooled_and_projected_as_by_the_code(case: dict) -> None:
    states, onto = torch.tensor(case["hidden_table_by_token"]), torch.tensor(case["projection"])

    def means(places: list[int]) -> torch.Tensor:
        found = []
        for start in range(0, len(places), AT_ONCE):
            rows = [case["rows"][at]["input_ids"] for at in places[start : start + AT_ONCE]]
            lengths = [len(row) for row in rows]
            ids = [row + [case["pad_id"]] * (max(lengths) - len(row)) for row in rows]
            found.append(pooled(states[torch.tensor(ids)], lengths, with_padding=True))
        return torch.cat(found)

    assert case["mini_batch"] == AT_ONCE
    sides = (means(case[f"sampled_{name}_rows_in_order"]) for name in ("new", "replay"))
    found = distance(*(projected(side, onto) for side in sides))
    assert found == pytest.approx(case["expected_distance_bf16"], abs=1e-2)


def test_padding_counts_only_where_it_is_asked_for() -> None:
    states = torch.tensor([[[2.0], [4.0], [100.0]]])
    assert pooled(states, [2], with_padding=False).item() == 3.0
    assert pooled(states, [2], with_padding=True).item() == pytest.approx(106 / 3)


def test_the_projection_is_orthonormal_and_follows_the_seed() -> None:
    onto = projection(50, seed=3)
    assert torch.allclose(onto.T @ onto, torch.eye(32), atol=1e-5)
    assert torch.equal(onto, projection(50, seed=3))
    assert not torch.equal(onto, projection(50, seed=4))
    assert projection(8, seed=3).shape == (8, 8)


@pytest.mark.parametrize("case", cases("lambda_schedule.json"))
def test_the_strength_grows_with_the_distance_and_stays_in_its_bounds(case: dict) -> None:
    found = strength(case["distance"], least=case["lambda_min"], most=case["lambda_max"], scale=case["tau"])
    assert found == pytest.approx(case["expected_lambda"], abs=1e-9)
    assert (found > PUBLISHED_GATE) == case["expected_penalty_active"]


@pytest.mark.parametrize("case", cases("reg_loss.json"))
def test_the_pull_to_zero_is_that_of_the_code(case: dict) -> None:
    weights = {name: torch.tensor(values, requires_grad=True) for name, values in case["params"].items()}
    names = pulled_names(list(weights), case["lora_target"])
    assert names == case["expected_penalised_names"]
    weight = case["lambda_value"] * share_of_new([bool(flag) for flag in case["is_replay"]])
    loss = torch.tensor(case["ce_loss"], requires_grad=True)
    if case["lambda_value"] > PUBLISHED_GATE:
        loss = loss + weight * mean_squares([weights[name] for name in names], [None] * len(names))
    assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-6)
    loss.backward()
    for name, expected in case["expected_grads"].items():
        found = weights[name].grad
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def row(group: str) -> EncodedRow:
    return EncodedRow((5, 6, 7), 2, group=group)


@pytest.mark.parametrize("to_zero", [False, True])
def test_the_pull_goes_to_where_the_phase_begins_or_to_zero(tiny_model: Path, to_zero: bool) -> None:
    model = load_model(ModelConfig(base=str(tiny_model), lora=LoraConfig(rank=2)), trainable=True).model
    pull = SimilarityPull(0.5, to_zero=to_zero, targets=["q_proj", "v_proj"])
    training = training_of(model)
    with torch.no_grad():
        for weight in training.parameters.values():
            weight.fill_(2.0)
    pull.begin(training)
    with torch.no_grad():
        for weight in training.parameters.values():
            weight += 1.0
    gone = 3.0 if to_zero else 1.0
    full = 0.5 * 0.5 * len(training.parameters) * gone**2
    assert pull.penalty([row("own"), row("own")]).item() == pytest.approx(full)  # type: ignore[union-attr]
    half = pull.penalty([row("own"), row("sers"), row("another"), row("own")])
    assert half is not None
    assert half.item() == pytest.approx(full / 2)
    assert pull.penalty([row("sers")]) is None
    half.backward()
    for weight in training.parameters.values():
        assert weight.grad is not None
        assert torch.allclose(weight.grad, torch.full_like(weight, 0.25 * gone / weight.numel()))
    frozen = [weight for name, weight in model.named_parameters() if name not in training.parameters]
    assert all(weight.grad is None for weight in frozen)


def test_rows_of_one_kind_are_nearer_than_rows_of_two(tiny_model: Path) -> None:
    loaded = load_model(ModelConfig(base=str(tiny_model), lora=LoraConfig(rank=2)))

    def rows(token: int, count: int) -> list[EncodedRow]:
        return [EncodedRow((*([token + at % 2] * (3 + at % 3)), 9), 3) for at in range(count)]

    ticks: list[tuple[int, int]] = []
    settings = {"seed": 1, "with_padding": False}
    alike = distance_of_rows(loaded, rows(20, 7), rows(20, 7), **settings)  # type: ignore[arg-type]
    apart = distance_of_rows(loaded, rows(20, 7), rows(40, 5), **settings, tick=lambda *at: ticks.append(at))  # type: ignore[arg-type]
    assert alike == pytest.approx(0, abs=1e-6)
    assert apart > 0.01
    assert ticks[-1] == (12, 12)


def test_the_distance_does_not_depend_on_how_rows_are_put_together(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(ModelConfig(base=str(tiny_model), dtype="float32", lora=LoraConfig(rank=2)))
    new = [EncodedRow(tuple(range(10, 13 + at)), 2) for at in range(9)]
    rehearsed = [EncodedRow(tuple(range(30 + at, 35 + 2 * at)), 2) for at in range(9)]
    settings = {"seed": 1, "with_padding": False}
    found = distance_of_rows(loaded, new, rehearsed, **settings)  # type: ignore[arg-type]
    monkeypatch.setattr(batching, "CPU_TOKENS", 1)
    alone = distance_of_rows(loaded, new[::-1], rehearsed, **settings)  # type: ignore[arg-type]
    assert alone == pytest.approx(found, abs=1e-5)
    assert found > 0.01
