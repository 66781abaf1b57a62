"""Fisher information and importance: by hand, golden, against single-row backward passes; rows together or apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from everlearn.models.loading import LoadedModel, load_model
from everlearn.models.parameters import tuned_parameters
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training import fisher
from everlearn.training.fisher import (
    OfSampledTokens,
    answer_loss,
    fisher_information,
    importance,
    mean_powers,
    negative_log_likelihood,
    output_norm,
    probability_norm,
)
from everlearn.training.rows import EncodedRow
from tests.tiny_models import ARCHITECTURES, save_tiny_model

ROWS = [EncodedRow((1, 10, 11, 12, 2), 3), EncodedRow((1, 20, 21, 22, 23, 24, 2), 2), EncodedRow((1, 30, 2), 2)]


def test_three_losses_of_two_parameters_by_hand() -> None:
    w = torch.tensor([2.0, -1.0], requires_grad=True)
    unused = torch.tensor([1.0], requires_grad=True)
    losses = (
        0.5 * (w @ torch.tensor(x) - y) ** 2 for x, y in (([1.0, 0.0], 1.0), ([0.0, 2.0], 0.0), ([1.0, 1.0], 1.0))
    )
    # residuals 1, -2, 0; gradients (1, 0), (0, -4), (0, 0)
    fisher, nothing = mean_powers(losses, [w, unused], "square")
    assert fisher.tolist() == pytest.approx([1 / 3, 16 / 3])
    assert nothing.tolist() == [0.0]


def test_squares_are_of_single_rows_not_of_their_mean() -> None:
    w = torch.tensor([1.0], requires_grad=True)
    (fisher,) = mean_powers((sign * w.sum() for sign in (1.0, -1.0)), [w], "square")
    assert fisher.tolist() == [1.0]  # the mean gradient is zero


def test_rows_with_the_same_answer_draw_tokens_of_their_own() -> None:
    scalar = OfSampledTokens(lambda logits, tokens: tokens.float(), 3)
    logits, prompts = torch.zeros(2, 1000), [torch.tensor([1, at, 8, 9]) for at in range(20)]
    drawn = [tuple(scalar(logits, ids).tolist()) for ids in prompts]
    assert len(set(drawn)) == len(prompts)
    assert drawn == [tuple(scalar(logits, ids).tolist()) for ids in prompts]


def test_many_small_squares_of_bfloat16_gradients_are_not_lost() -> None:
    w = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    gradient = 1.0078125  # the next number after 1; its square is none of this format
    (fisher,) = mean_powers(((gradient * w).sum() for _ in range(1000)), [w], "square")
    assert fisher.tolist() == pytest.approx([gradient**2], rel=1e-5)


def loaded(folder: Path, tuning: str) -> LoadedModel:
    return load_model(
        ModelConfig(base=str(folder), tuning=tuning, dtype="float32", lora=LoraConfig(rank=2, dropout=0.5)),
        trainable=True,
        seed=1,
    )


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_information_equals_a_plain_computation(tiny_model: Path, tuning: str) -> None:
    model = loaded(tiny_model, tuning)
    model.model.train()
    with torch.no_grad():
        for parameter in tuned_parameters(model.model).values():
            parameter += 0.01  # an adapter that begins at zero would hide its dropout
    found = fisher_information(model, ROWS)
    expected: dict[str, torch.Tensor] = {}
    model.model.eval()
    for row in ROWS:
        model.model.zero_grad()
        logits = model.model(torch.tensor([row.ids])).logits[0]
        answer = torch.tensor(row.ids[row.prompt_length :])
        cross_entropy(logits[row.prompt_length - 1 : -1], answer).backward()
        for name, parameter in tuned_parameters(model.model).items():
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            expected[name] = expected.get(name, torch.zeros_like(parameter)) + gradient**2 / len(ROWS)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-4, atol=1e-10)
    assert sum(float(values.sum()) for values in found.values()) > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tiny_model: Path, training: bool) -> None:
    model = loaded(tiny_model, "lora")
    model.model.requires_grad_(False)
    model.model.train(training)
    before = {name: values.clone() for name, values in model.model.state_dict().items()}
    fisher_information(model, ROWS)
    assert model.model.training == training
    for name, parameter in model.model.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(before[name], model.model.state_dict()[name])


@pytest.mark.parametrize("together", [True, False])
def test_a_model_is_told_that_no_token_is_padding(together: bool, tmp_path: Path) -> None:
    """Else Transformers warns of rows that end in a token which is the padding's as well."""
    model = loaded(save_tiny_model(tmp_path, "gpt2"), "full")
    masks: list[object] = []
    model.model.register_forward_pre_hook(
        lambda _, __, given: masks.append(given.get("attention_mask")), with_kwargs=True
    )
    importance(model, MANY, scalar=answer_loss, power="square", together=together)
    assert masks
    assert all(isinstance(mask, torch.Tensor) and mask.all() for mask in masks)


def golden(golden_dir: Path, part: str) -> list[dict]:  # type: ignore[type-arg]
    cases = json.loads((golden_dir / "baselines" / "ewc_si_mas.json").read_text())["cases"]
    return [case for case in cases if case["part"] == part]


def test_the_golden_fisher_information_is_that_of_gold_answers_or_of_all_answers_by_their_chance(
    golden_dir: Path,
) -> None:
    for case in golden(golden_dir, "fisher"):
        w = torch.tensor(case["W"], dtype=torch.float64, requires_grad=True)
        x, y = torch.tensor(case["x"], dtype=torch.float64), torch.tensor(case["y"])
        losses = [cross_entropy(w @ row, label) for row, label in zip(x, y, strict=True)]
        (found,) = mean_powers(losses, [w], "square")
        np.testing.assert_allclose(found.detach(), case["expected_empirical"], atol=1e-6)
        for other in ("expected_squared_batch_gradient", "expected_weighted_by_probability"):  # of other code bases
            assert not np.allclose(found.detach(), case[other], atol=1e-2)

        by_chance = [
            chance.sqrt() * cross_entropy(w @ row, torch.tensor(label))
            for row in x
            for label, chance in enumerate((w @ row).detach().softmax(0))
        ]
        (true,) = mean_powers(by_chance, [w], "square")
        np.testing.assert_allclose(true.detach() * len(w), case["expected_true"], atol=1e-6)


def test_the_golden_importance_is_the_mean_absolute_gradient_of_the_output_s_squared_norm(golden_dir: Path) -> None:
    for case in golden(golden_dir, "mas"):
        w = torch.tensor(case["W"], dtype=torch.float64, requires_grad=True)
        rows = torch.tensor(case["x"], dtype=torch.float64)
        (found,) = mean_powers(((w @ row).square().sum() for row in rows), [w], "absolute")
        np.testing.assert_allclose(found.detach(), case["expected_importance"], atol=1e-6)


MANY = [EncodedRow((1, *(4 + (at * 7 + k * (k + at)) % 80 for k in range(3 + at)), 2), 1 + at % 4) for at in range(9)]
SCALARS = {
    "loss": (answer_loss, "square"),
    "likelihood of drawn tokens": (OfSampledTokens(negative_log_likelihood, 3), "square"),
    "norm of logits": (output_norm, "absolute"),
    "norm of probabilities": (probability_norm, "absolute"),
}


def moved(folder: Path, tuning: str) -> LoadedModel:
    """A model whose adapters do something, on all their layers."""
    lora = LoraConfig(rank=2, targets="all-linear")
    model = load_model(
        ModelConfig(base=str(folder), tuning=tuning, dtype="float32", device="cpu", lora=lora), trainable=True, seed=1
    )
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned_parameters(model.model).values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draws)
    return model


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 1e-4 * np.abs(values).max(), name


def alone(model: LoadedModel, rows: list[EncodedRow]) -> dict[str, np.ndarray]:
    """The Fisher information from one backward pass for each row."""
    return importance(model, rows, scalar=answer_loss, power="square", together=False)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_together_have_the_result_of_rows_one_by_one(
    architecture: str, tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(save_tiny_model(tmp_path, architecture, tied=tuning == "full"), tuning)
    expected = {
        name: importance(model, MANY, scalar=scalar, power=power, together=False)  # type: ignore[arg-type]
        for name, (scalar, power) in SCALARS.items()
    }
    monkeypatch.setattr(fisher, "_agree", lambda *_: True)
    monkeypatch.setattr(fisher, "_one_by_one", lambda *_: pytest.fail("they are computed together"))
    for name, (scalar, power) in SCALARS.items():
        found = importance(model, MANY, scalar=scalar, power=power)  # type: ignore[arg-type]
        assert_equal(found, expected[name])
        assert sum(float(values.sum()) for values in found.values()) > 0


def test_an_untied_embedding_whose_padding_has_no_gradient_is_counted_by_its_words(tiny_model: Path) -> None:
    model = moved(tiny_model, "full")
    rows = [EncodedRow((*row.ids[:3], 0, *row.ids[3:]), row.prompt_length) for row in MANY]  # 0: the padding
    assert_equal(fisher_information(model, rows), alone(model, rows))


def test_a_model_whose_rows_meet_in_a_batch_goes_row_by_row(tiny_model: Path) -> None:
    model = moved(tiny_model, "full")
    expected = alone(model, MANY)
    head = model.model.lm_head
    head.register_forward_hook(lambda module, given, back: back - 0.5 * back.mean(0, keepdim=True) * (len(back) > 1))
    assert_equal(fisher_information(model, MANY), expected)


def test_experts_that_see_the_tokens_of_all_rows_go_row_by_row() -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        vocab_size=100,
        num_local_experts=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        experts = AutoModelForCausalLM.from_config(config).eval()
    model = LoadedModel(experts, None, "", "", 64, torch.device("cpu"))  # type: ignore[arg-type]
    assert_equal(fisher_information(model, MANY), alone(model, MANY))


def test_batches_are_halved_until_they_fit_and_every_row_is_told_of(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(tiny_model, "lora")
    expected = alone(model, MANY)
    sizes: list[int] = []
    scalars = fisher._scalars

    def scarce(loaded: LoadedModel, rows: list[EncodedRow], scalar: fisher.Scalar) -> Iterator[torch.Tensor]:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(rows))
        yield from scalars(loaded, rows, scalar)

    monkeypatch.setattr(fisher, "_scalars", scarce)
    monkeypatch.setattr(fisher, "release_device_memory", lambda: None)  # it collects garbage, which takes time
    told: list[tuple[int, int]] = []
    assert_equal(fisher_information(model, MANY, lambda done, of: told.append((done, of))), expected)
    assert sum(sizes) == len(MANY) + 2  # two rows tell whether both ways agree
    assert told[-1] == (len(MANY), len(MANY))
    assert told == sorted(told)
