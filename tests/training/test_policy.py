"""Training by reward: what moves and what it is held to, what a kill costs, and what is refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from everlearn.data.instance import Instance
from everlearn.data.prompts import VanillaTemplate
from everlearn.data.walk_prompts import WalkTemplate
from everlearn.errors import MissingExtraError
from everlearn.files import read_jsonl
from everlearn.models import loading
from everlearn.models.adapters import inner_model
from everlearn.progress import LineProgress
from everlearn.recipe import LoraConfig, ModelConfig, TrainingConfig
from everlearn.rewards.scorers import ScorerSettings
from everlearn.training import policy as by_reward
from everlearn.training.checkpoint import moving_tensors
from everlearn.training.phase import Phase, PolicyTraining

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
ROWS = tuple(Instance("", f"Input: the red cat {at}", "yes", "t", id=str(at)) for at in range(6))
POLICY = PolicyTraining(
    ROWS, ScorerSettings(), epochs=2, prompts=2, rollouts=4, max_new_tokens=6, temperature=1.0, beta=0.5
)
CONFIG = TrainingConfig(learning_rate=1e-2, scheduler="constant", precision="float32", checkpoint_every=2)
TEMPLATE = WalkTemplate(VanillaTemplate(), published=False)


@pytest.fixture(autouse=True)
def _rewards_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model writes no tags: what it is paid for is short words."""
    monkeypatch.setattr(by_reward, "format_reward", lambda text, weight: len(text) % 7 / 7)


def loaded(folder: Path, tuning: str) -> loading.LoadedModel:
    lora = LoraConfig(rank=2, dropout=0.1, targets=["q_proj", "v_proj"])
    config = ModelConfig(base=str(folder), tuning=tuning, device="cpu", dtype="float32", lora=lora)  # type: ignore[arg-type]
    return loading.load_model(config, trainable=True, seed=1)


def train(model: loading.LoadedModel, folder: Path, policy: PolicyTraining = POLICY, **changes: Any) -> list[Any]:
    folder.mkdir(exist_ok=True)
    config = CONFIG.model_copy(update=changes)
    phase = Phase(policy=policy)
    by_reward.train_policy(
        model, config, TEMPLATE, seed=3, folder=folder, progress=LineProgress(), what="test", phase=phase
    )
    return list(read_jsonl(folder / "history.jsonl"))


@needs_trl
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_reference_is_the_model_as_the_phase_began_and_a_killed_phase_goes_on(
    tuning: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tiny_model, tuning)
    for weight in moving_tensors(model.model).values():  # the start is neither the base's path nor adapters off
        weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    begun = {name: weight.clone() for name, weight in moving_tensors(model.model).items()}
    seen: list[float] = []
    exchange = by_reward.exchanged

    def watched(kept: Any) -> Any:
        seen.append(
            max(float((value - begun[name]).abs().max()) for name, (_, value) in zip(begun, kept, strict=True))
        )
        return exchange(kept)

    monkeypatch.setattr(by_reward, "exchanged", watched)
    history = train(model, tmp_path / "whole")
    assert seen == [0.0] * 6, "each step's reference has the very weights of the start"
    assert len(history) == 6
    assert history[0]["KL to the start"] == pytest.approx(0.0, abs=1e-6)
    assert max(row["KL to the start"] for row in history) > 1e-4
    assert any((weight - begun[name]).abs().max() > 1e-4 for name, weight in moving_tensors(model.model).items())
    assert "forward" not in inner_model(model.model).__dict__, "nothing of TRL's is left on the model"

    killed = loaded(tiny_model, tuning)
    for name, weight in moving_tensors(killed.model).items():
        weight.copy_(begun[name])
    keep = by_reward.keep_one_partial

    def kill(folder: Path, step: int) -> None:
        keep(folder, step)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(by_reward, "keep_one_partial", kill)
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed")
    monkeypatch.setattr(by_reward, "keep_one_partial", keep)
    resumed = loaded(tiny_model, tuning)
    for name, weight in moving_tensors(resumed.model).items():
        weight.copy_(begun[name])
    again = train(resumed, tmp_path / "killed")
    without = [{key: value for key, value in row.items() if key != "seconds"} for row in (*history, *again)]
    assert without[:6] == without[6:]
    of_resumed = moving_tensors(resumed.model)
    assert all(torch.equal(weight, of_resumed[name]) for name, weight in moving_tensors(model.model).items())
    assert not list((tmp_path / "killed").glob("partial-*"))


@needs_trl
def test_a_larger_beta_stays_nearer_to_the_start(tiny_model: Path, tmp_path: Path) -> None:
    found = {}
    for beta in (0.001, 5.0):
        history = train(loaded(tiny_model, "full"), tmp_path / str(beta), replace(POLICY, beta=beta))
        found[beta] = sum(row["KL to the start"] for row in history)
    assert found[5.0] < found[0.001]


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"everlearn\[rl\]"):
        by_reward.check_trl()


@needs_trl
def test_what_is_rewarded_is_written_more(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_reward, "format_reward", lambda text, weight: min(text.count("e") - 1, 6) / 6)
    policy = replace(POLICY, beta=0.001, epochs=10, rollouts=8)
    rewards = [row["reward"] for row in train(loaded(tiny_model, "full"), tmp_path / "run", policy)]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])
