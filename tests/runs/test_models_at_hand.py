"""Which models are in memory at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everlearn.models import loading
from everlearn.recipe import ModelConfig
from everlearn.runs import models_at_hand
from everlearn.runs.models_at_hand import ModelsAtHand


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """The checkpoints that were loaded."""
    made: list[Path | None] = []
    load = loading.load_model

    def spy(config: ModelConfig, *, checkpoint: Path | None = None, **others) -> loading.LoadedModel:
        made.append(checkpoint)
        return load(config, checkpoint=checkpoint, **others)

    monkeypatch.setattr(loading, "load_model", spy)
    return made


def trained(config: ModelConfig, folder: Path) -> Path:
    """A stage's checkpoint whose model is not the base."""
    tuned = loading.load_model(config, trainable=True)
    for weight in tuned.model.parameters():
        if weight.requires_grad:
            weight.data += 0.1
    loading.save_checkpoint(tuned, folder)
    return folder


def weights_held(models: ModelsAtHand) -> int:
    held = {id(one.model): one.model for one in (models._latest, models._base) if one is not None}
    return sum(weight.numel() for model in held.values() for weight in model.parameters())


def test_one_copy_of_the_weights_serves_base_and_adapter_of_a_stage_that_was_found(tiny_model, tmp_path, loads):
    config = ModelConfig(base=str(tiny_model), device="cpu")
    checkpoint = trained(config, tmp_path)
    alone = sum(weight.numel() for weight in loading.load_model(config, checkpoint=checkpoint).model.parameters())
    loads.clear()
    models = ModelsAtHand(config)
    models.latest()  # as when the base is measured before the first stage
    models.point_to(checkpoint)
    base = models.base()
    assert base.fingerprint == base.base_fingerprint
    tuned = models.latest()
    assert tuned.fingerprint != tuned.base_fingerprint
    assert weights_held(models) == alone
    assert loads == [None, checkpoint]


def test_the_base_of_a_found_stage_is_the_base_and_the_adapter_comes_back(tiny_model, tmp_path) -> None:
    config = ModelConfig(base=str(tiny_model), device="cpu")
    ids = torch.tensor([[1, 5, 9, 12]])
    models = ModelsAtHand(config)
    models.point_to(trained(config, tmp_path))

    def logits(loaded: loading.LoadedModel) -> torch.Tensor:
        with torch.no_grad():
            return loaded.model(input_ids=ids).logits

    alone = logits(loading.load_model(config))
    assert torch.equal(logits(models.base()), alone)
    assert not torch.equal(logits(models.latest()), alone)
    assert torch.equal(logits(models.base()), alone)


def test_full_tuning_keeps_base_and_latest_of_a_small_model(tiny_model, tmp_path, loads) -> None:
    config = ModelConfig(base=str(tiny_model), device="cpu", tuning="full")
    checkpoint = trained(config, tmp_path)
    loads.clear()
    models = ModelsAtHand(config)
    models.point_to(checkpoint)
    first = models.latest()
    assert models.base().fingerprint == first.base_fingerprint
    assert models.latest() is first
    assert loads == [checkpoint, None]


def test_of_a_large_model_base_and_latest_are_never_in_memory_together(tiny_model, tmp_path, loads, monkeypatch):
    monkeypatch.setattr(models_at_hand, "LARGE", 1)
    config = ModelConfig(base=str(tiny_model), device="cpu", tuning="full")
    checkpoint = trained(config, tmp_path)
    loads.clear()
    models = ModelsAtHand(config)
    models.point_to(checkpoint)
    alone = 0
    for asked in (models.latest, models.base, models.latest):
        loaded = asked()
        alone = alone or weights_held(models)
        assert (loaded.fingerprint == loaded.base_fingerprint) == (asked == models.base)
        assert weights_held(models) == alone
    assert loads == [checkpoint, None, checkpoint]
