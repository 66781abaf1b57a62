"""LCIA's rates and averages: the golden cases, what always holds of them, and trained stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from everlearn.training.averaging import OptimalAverage, optimal_rates
from everlearn.training.influence import OptimizerStep, Training

GOLDEN = Path(__file__).parents[1] / "golden" / "lcia"


def cases(name: str) -> list:
    found = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in found]


def tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items() if value is not None}


def parameters(values: dict) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(value.clone()) for name, value in tensors(values).items()}


def begun(influence: OptimalAverage, weights: dict[str, torch.nn.Parameter]) -> OptimalAverage:
    influence.begin(Training(torch.nn.Module(), weights, [], torch.device("cpu"), 0, 9, lambda rows: {}))
    return influence


def influence_of(case: dict, **changes: object) -> OptimalAverage:
    options = {
        "scale": case["options"].get("scale", 2.0),
        "fallback": case["options"]["fallback_rate"],
        "starts_as": case.get("average_starts_as", "start"),
    }
    return OptimalAverage(case["form"], **{**options, **changes})  # type: ignore[arg-type]


def stepped(influence: OptimalAverage, weights: dict[str, torch.nn.Parameter], at: int = 0) -> OptimizerStep:
    step = OptimizerStep(at, [], weights, 0.1)
    influence.after_step(step)
    return step


def averages(influence: OptimalAverage) -> dict[str, torch.Tensor]:
    kept = influence.state().items()
    return {name.removeprefix("average."): value.clone() for name, value in kept if name.startswith("average.")}


@pytest.mark.parametrize("case", cases("coefficient"))
def test_the_recorded_rate_and_average_of_one_step(case: dict) -> None:
    for name, given in case["tensors"].items():
        weights = parameters({name: given["parameter"]})
        influence = begun(influence_of(case), weights)
        state = {f"average.{name}": given["average"], f"gradient.{name}": given["previous_gradient"]}
        influence.load_state(tensors({**state, f"before.{name}": given.get("previous_parameter")}))
        weights[name].grad = tensors({name: given["gradient"]}).get(name)
        step = stepped(influence, weights)
        assert float(step.notes["average_rate"]) == pytest.approx(case["expected_rate"][name], rel=1e-5)
        assert bool(step.notes["fallbacks"]) == case["expected_is_fallback"][name]
        expected = torch.tensor(case["expected_average"][name])
        torch.testing.assert_close(averages(influence)[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", cases("coefficient"))
def test_the_recorded_rates_of_recorded_norms(case: dict) -> None:
    recorded = list(case["expected_norms"].values())
    keys = ("a_parameter_minus_average", "b_gradient", "c_gradient_change", "d_parameter_step")
    norms = {
        key[0]: torch.tensor([float("nan") if one.get(key) is None else one[key] for one in recorded]) for key in keys
    }
    options = case["options"]
    rates, missed = optimal_rates(
        case["form"], norms, scale=options.get("scale", 1.0), fallback=options["fallback_rate"]
    )
    torch.testing.assert_close(rates, torch.tensor(list(case["expected_rate"].values())), rtol=1e-4, atol=1e-6)
    assert missed.tolist() == list(case["expected_is_fallback"].values())


@pytest.mark.parametrize("case", cases("average_sequence"))
def test_the_recorded_averages_step_by_step_and_after_a_kill_at_any_of_them(case: dict) -> None:
    weights = parameters(case["start_parameters"])
    influence = begun(influence_of(case), weights)
    for at, given in enumerate(case["steps"]):
        values, gradients = tensors(given["parameters"]), tensors(given["gradients"])
        for name, weight in weights.items():
            weight.data, weight.grad = values[name], gradients.get(name)
        step = stepped(influence, weights, at)
        expected = case["expected_rates"][at]
        assert float(step.notes["average_rate"]) == pytest.approx(sum(expected.values()) / len(expected), rel=1e-4)
        missed = case["expected_is_fallback"][at]
        assert float(step.notes["fallbacks"]) == pytest.approx(sum(missed.values()) / len(missed))
        for name, average in averages(influence).items():
            torch.testing.assert_close(
                average, torch.tensor(case["expected_averages"][at][name]), rtol=1e-5, atol=1e-5
            )
        state = {name: value.clone() for name, value in influence.state().items()}
        influence = begun(influence_of(case), weights)
        influence.load_state(state)


@pytest.mark.parametrize("case", cases("linear_training"))
def test_the_recorded_trainings_and_the_weights_that_they_end_with(case: dict) -> None:
    weights = parameters(case["start_parameters"])
    frozen, inputs, targets = (torch.tensor(case[name]) for name in ("frozen_W", "inputs", "targets"))
    influence = begun(influence_of(case), weights)
    kind = case["optimizer"]
    name = kind if isinstance(kind, str) else kind["name"]
    settings = {} if isinstance(kind, str) else {key: value for key, value in kind.items() if key != "name"}
    optimizer = getattr(torch.optim, {"sgd": "SGD", "adamw": "AdamW"}[name.lower()])(
        weights.values(), lr=1, **settings
    )
    for at, rows in enumerate(case["batches"]):
        x, low = inputs[rows], weights["lora_A"]
        found = x @ frozen.T + case["scaling"] * (x @ low.T) @ weights["lora_B"].T
        ((found - targets[rows]) ** 2).mean().backward()
        if case["max_grad_norm"] is not None:
            torch.nn.utils.clip_grad_norm_(weights.values(), case["max_grad_norm"])
        optimizer.param_groups[0]["lr"] = case["learning_rates"][at]
        optimizer.step()
        step = stepped(influence, weights, at)
        for name, weight in weights.items():
            given, moved = (torch.tensor(case[f"expected_{what}"][at][name]) for what in ("gradients", "parameters"))
            torch.testing.assert_close(weight.grad, given, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(weight.detach(), moved, rtol=1e-4, atol=1e-4)
        rates, missed = (list(case[f"expected_{what}"][at].values()) for what in ("rates", "is_fallback"))
        assert float(step.notes["average_rate"]) == pytest.approx(sum(rates) / len(rates), rel=1e-3)
        assert float(step.notes["fallbacks"]) == pytest.approx(sum(missed) / len(missed))
        optimizer.zero_grad(set_to_none=True)
        expected = case["expected_averages"][at]
        for name, average in averages(influence).items():
            torch.testing.assert_close(average, torch.tensor(expected[name]), rtol=1e-4, atol=1e-4)
    influence.finish()
    for name, weight in weights.items():
        final = torch.tensor(case["expected_final_weights"][name])
        torch.testing.assert_close(weight.detach(), final, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["code", "published"])
def test_a_rate_is_inside_its_bounds_and_the_average_between_its_old_value_and_the_weights(form: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {"w": torch.nn.Parameter(torch.randn(6, 5, generator=draw))}
    influence = begun(OptimalAverage(form, scale=0.5, fallback=0.01, starts_as="start"), weights)  # type: ignore[arg-type]
    for at in range(30):
        old, last = averages(influence)["w"], (weights["w"].detach().clone(), influence.state().get("gradient.w"))
        weights["w"].data += 0.3 * torch.randn(6, 5, generator=draw)
        weights["w"].grad = torch.randn(6, 5, generator=draw) * 10 ** float(torch.randn((), generator=draw))
        step, new, now = stepped(influence, weights, at), averages(influence)["w"], weights["w"].detach()
        assert 0 < float(step.notes["average_rate"]) < 1
        assert (torch.minimum(old, now) - 1e-5 <= new).all()
        assert (new <= torch.maximum(old, now) + 1e-5).all()
        if not step.notes["fallbacks"]:  # what the formulas say of the distances, whatever the rate
            b, c = weights["w"].grad.abs().sum(), (weights["w"].grad - last[1]).abs().sum()
            moved, left = (new - old).abs().sum(), (now - new).abs().sum()
            if form == "code":
                torch.testing.assert_close(moved, 0.5 * (1 + b) / c, rtol=1e-3, atol=1e-5)
            else:
                torch.testing.assert_close(left, (1 + b) * (now - last[0]).abs().sum() / c, rtol=1e-3, atol=1e-4)


def test_a_fixed_rate_is_an_exponential_average_in_float32_whatever_the_weights_are() -> None:
    weights = {"w": torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))}
    influence = begun(OptimalAverage("fixed", scale=1.0, fallback=0.01, starts_as="start"), weights)
    weights["w"].data *= 1.125
    for at in range(500):
        assert not stepped(influence, weights, at).notes
    assert averages(influence)["w"].dtype == torch.float32
    torch.testing.assert_close(averages(influence)["w"], torch.full((3,), 1.125 - 0.125 * 0.99**500))
    influence.finish()
    assert weights["w"].dtype == torch.bfloat16
