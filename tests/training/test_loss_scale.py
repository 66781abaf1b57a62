"""The loss in float16: scaled, computed again where gradients overflow, and as it was when training goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everlearn.errors import ModelError, RecipeError, UserError
from everlearn.models import loading
from everlearn.recipe import ModelConfig, make_recipe
from everlearn.runs import formats, prepare
from everlearn.training.influence import Influence
from everlearn.training.loss_scale import LossScale
from tests.training.test_stage import CONFIG, load, train, weights
from tests.training.test_stage import folders as folders

CPU, CARD = torch.device("cpu"), torch.device("cuda")
HALF = CONFIG.model_copy(update={"precision": "float16"})


def with_gradient(value: float) -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), value)
    return torch.optim.AdamW([weight])


def gradient(optimizer: torch.optim.Optimizer) -> list[float]:
    return optimizer.param_groups[0]["params"][0].grad.tolist()


def test_gradients_are_divided_by_the_scale_and_one_that_overflows_halves_it() -> None:
    scale, fine = LossScale(CPU, torch.float16), with_gradient(3.0)
    start = scale.value
    assert float(scale.scaled(torch.tensor(2.0))) == 2.0 * start
    assert scale.settle([fine])
    assert gradient(fine) == [3.0 / start] * 3
    assert not scale.settle([with_gradient(1.0), with_gradient(float("inf"))])
    assert scale.value == start / 2
    other = LossScale(CPU, torch.float16)
    other.load_state(scale.state())
    assert (other.value, other.state()) == (start / 2, scale.state())


@pytest.mark.parametrize("form", [None, torch.float32, torch.bfloat16])
def test_other_formats_have_no_scale(form: torch.dtype | None) -> None:
    scale, large = LossScale(CPU, form), with_gradient(float("inf"))
    assert (scale.value, scale.state(), scale.settle([large])) == (1.0, {}, True)
    assert gradient(large) == [float("inf")] * 3


class Watched(Influence):
    """Counts steps and keeps the first gradients; kills after so many."""

    def __init__(self, kill_at: int = 0) -> None:
        self.steps, self.kill_at, self.first = 0, kill_at, {}

    def after_backward(self, step):
        self.steps += 1
        self.first = self.first or {name: gradient.clone() for name, gradient in step.gradients.items()}

    def after_step(self, step):
        if self.steps == self.kill_at:
            raise KeyboardInterrupt


def test_a_step_that_overflows_is_computed_again_and_none_is_left_out(
    folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, given = LossScale.settle, []

    def settle(scale: LossScale, optimizers: object) -> bool:
        given.append(scale.value)
        return settled(scale, optimizers)

    exact, whole = Watched(), Watched()
    train(load(folders), tmp_path / "exact", influences=[exact])
    monkeypatch.setattr(LossScale, "settle", settle)
    begin = LossScale.__init__

    def too_large(scale: LossScale, *arguments: object) -> None:
        begin(scale, *arguments)
        scale.load_state({**scale.state(), "scale": 2.0**40})

    monkeypatch.setattr(LossScale, "__init__", too_large)
    half = load(folders)
    train(half, tmp_path / "whole", config=HALF, influences=[whole])
    assert whole.steps == exact.steps
    assert len(given) > whole.steps
    assert given[0] == 2.0**40 > given[-1] > 1.0
    for name, expected in exact.first.items():
        assert torch.allclose(whole.first[name], expected, rtol=0.05, atol=0.02 * float(expected.abs().max())), name
    killed = Watched(kill_at=4)
    config = HALF.model_copy(update={"checkpoint_every": 2})
    with pytest.raises(KeyboardInterrupt):
        train(load(folders), tmp_path / "killed", config=config, influences=[killed])
    resumed = load(folders)
    train(resumed, tmp_path / "killed", config=config, influences=[Watched()])
    assert all(torch.equal(weight, weights(half)[name]) for name, weight in weights(resumed).items())


def test_gradients_that_overflow_at_any_scale_end_the_training_with_a_sentence(folders, tmp_path: Path) -> None:
    class Huge(Influence):
        reads = True

        def units(self, rows):
            return 1

        def term(self, seen):
            return seen.states.float().sum() * 1e38

    with pytest.raises(UserError, match=r"the gradients of step 1 of 6 are too large for float16: set training\.prec"):
        train(load(folders), tmp_path, config=HALF, influences=[Huge()])


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA GPU without bfloat16, as far as formats are chosen."""
    for module in (formats, loading):
        monkeypatch.setattr(module, "choose_device", lambda name: CARD)
    monkeypatch.setattr("everlearn.devices.has_native_bfloat16", lambda device: False)
    monkeypatch.setattr(loading, "has_native_bfloat16", lambda device: False)


@pytest.mark.parametrize(("tuning", "dtype"), [("lora", "float16"), ("full", "float32")])
def test_a_gpu_without_bfloat16_computes_in_float16_and_the_run_tells_so(turing, tuning: str, dtype: str) -> None:
    recipe = make_recipe({"model": {"tuning": tuning}})
    found = formats.formats_of(recipe, {})
    assert (found.dtype, found.precision) == (dtype, "float16")
    assert found.notes[0].startswith(f"this GPU has no bfloat16: {dtype} weights and float16 steps")
    asked = make_recipe({"model": {"tuning": tuning, "dtype": "float32"}, "training": {"precision": "float32"}})
    assert formats.formats_of(asked, {}).notes == ()
    if tuning == "full":
        with pytest.raises(RecipeError, match=r"float16 scales the loss by whole gradients"):
            prepare.refuse_unfit_scale(found)
        prepare.refuse_unfit_scale(replace(found, precision="float32"))


@pytest.mark.parametrize(("section", "key"), [("model", "dtype"), ("training", "precision")])
def test_float16_is_refused_on_a_processor(section: str, key: str) -> None:
    with pytest.raises(ModelError, match=rf"^{section}\.{key}: float16 is for GPUs that have no bfloat16, and cpu is"):
        formats.formats_of(make_recipe({section: {key: "float16"}, "name": "run"}), {})


def test_float16_weights_are_for_frozen_models() -> None:
    assert ModelConfig(dtype="float16").dtype == "float16"
    with pytest.raises(RecipeError, match=r"float16 is for frozen weights .*precision: float16 computes in"):
        make_recipe({"model": {"dtype": "float16", "tuning": "full"}})
