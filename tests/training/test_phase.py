"""Phases: parts of a stage that add up to it, inherited moments, rates of parts, and what is the same as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everlearn.files import read_jsonl
from everlearn.models import loading
from everlearn.models.state import MOMENTS, MOVING, ModelState, Part, Tuning
from everlearn.recipe import TrainingConfig
from everlearn.training.optimizers import make_adamw
from everlearn.training.phase import Phase, check_phases
from everlearn.training.schedules import Schedule
from tests.tiny_models import save_tiny_model
from tests.training.test_stage import load, train, weights

CONSTANT = Schedule("constant")
CONFIG = TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"llama": save_tiny_model(tmp_path_factory.mktemp("models") / "llama")}


def go_on(folders, before: Path, folder: Path, phase: Phase, tuning: str) -> loading.LoadedModel:
    """A phase from where another has ended, as the stage loop trains it."""
    kind = "adapter" if tuning == "lora" else "model"
    start = ModelState("start", (Part(before, kind),))
    loaded = loading.load_model(_config(folders, tuning), checkpoint=before, trainable=True, seed=5)
    train(loaded, folder, config=CONFIG, phase=phase, tuning=Tuning(start))
    return loaded


def _config(folders, tuning: str):
    from everlearn.recipe import LoraConfig, ModelConfig

    lora = LoraConfig(targets=["q_proj", "v_proj"])
    return ModelConfig(base=str(folders["llama"]), tuning=tuning, dtype="float32", lora=lora, device="cpu")


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_two_phases_with_weights_and_moments_carried_over_are_one_training(folders, tmp_path, tuning: str) -> None:
    whole = load(folders, tuning=tuning)
    train(whole, tmp_path / "whole", config=CONFIG, phase=Phase(schedule=CONSTANT))
    first = load(folders, tuning=tuning)
    train(first, tmp_path / "a", config=CONFIG, phase=Phase(schedule=CONSTANT, steps=(0, 4), keeps_moments=True))
    loading.save_checkpoint(first, tmp_path / "a")
    second = go_on(
        folders, tmp_path / "a", tmp_path / "b", Phase("b", "a", "inherit", schedule=CONSTANT, steps=(4, 6)), tuning
    )
    reached, expected = weights(second), weights(whole)
    assert reached.keys() == expected.keys()
    assert all(torch.equal(reached[name], expected[name]) for name in expected)
    losses = [row["loss"] for part in "ab" for row in read_jsonl(tmp_path / part / "history.jsonl")]
    assert losses == [row["loss"] for row in read_jsonl(tmp_path / "whole" / "history.jsonl")]
    fresh = go_on(folders, tmp_path / "a", tmp_path / "c", Phase("c", "a", schedule=CONSTANT, steps=(4, 6)), tuning)
    assert not all(torch.equal(weights(fresh)[name], expected[name]) for name in expected)


def test_moments_that_were_not_kept_cannot_be_inherited(folders, tmp_path) -> None:
    first = load(folders)
    train(first, tmp_path / "a", config=CONFIG, phase=Phase(steps=(0, 2)))
    loading.save_checkpoint(first, tmp_path / "a")
    assert not (tmp_path / "a" / MOMENTS).exists()
    with pytest.raises(AssertionError, match="has kept them"):
        go_on(folders, tmp_path / "a", tmp_path / "b", Phase("b", "a", "inherit", steps=(2, 6)), "lora")


def test_a_part_has_the_rate_that_its_factor_gives_and_others_the_rate_itself(folders, tmp_path) -> None:
    config = _config(folders, "lora")
    loading.save_checkpoint(load(folders), tmp_path / "first")
    past = Part(tmp_path / "first", "adapter", "past")
    loaded = loading.load_model(config, trainable=True, beside=[past], moving=[MOVING, "past"])
    optimizer = make_adamw(loaded.model, rate=1.0, weight_decay=0.5, parts={"past": 0.25})
    factor = {id(weight): group["rate_factor"] for group in optimizer.param_groups for weight in group["params"]}
    found = {name: factor[id(weight)] for name, weight in loaded.model.named_parameters() if weight.requires_grad}
    assert set(found.values()) == {1.0, 0.25}
    assert all((rate == 0.25) == (".past." in name) for name, rate in found.items())


def test_the_default_phase_adds_nothing_to_what_results_depend_on_and_every_other_does() -> None:
    start = Tuning(ModelState("s", (Part(Path("x"), "adapter"),)))
    assert Phase().describe(start) is None
    others = [
        Phase(moments="inherit"),
        Phase(schedule=CONSTANT),
        Phase(steps=(0, 1)),
        Phase(steps=(0, 2)),
        Phase(keeps_moments=True),
    ]
    tunings = [
        Tuning(start.start, moves={MOVING: 0.5}),
        Tuning(start.start, after="concatenate"),
        Tuning(ModelState("s", start.start.as_part("past"))),
        Tuning(ModelState("s", start.start.as_part("past", is_active=False))),
    ]
    described = [phase.describe(start) for phase in others] + [Phase().describe(tuning) for tuning in tunings]
    assert None not in described
    assert len({str(one) for one in described}) == len(described)


@pytest.mark.parametrize(
    ("phases", "why"),
    [
        ([], "exactly one"),
        ([Phase(), Phase("b")], "exactly one"),
        ([Phase(is_released=False)], "exactly one"),
        ([Phase("a"), Phase("a", is_released=False)], "two phases are called a"),
        ([Phase("a", parent="b"), Phase("b", is_released=False)], "a phase before it"),
        ([Phase(steps=(3, 3))], "has steps"),
    ],
)
def test_a_stage_releases_one_phase_and_phases_start_from_earlier_ones(phases: list[Phase], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        check_phases(phases)
