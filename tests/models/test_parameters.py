"""Which parameters tuning moves."""

from __future__ import annotations

from pathlib import Path

from everlearn.models.adapters import adapter_off
from everlearn.models.loading import load_model, save_checkpoint
from everlearn.models.parameters import tuned_parameters
from everlearn.recipe import LoraConfig, ModelConfig


def test_full_tuning_moves_every_parameter(tiny_model: Path) -> None:
    model = load_model(ModelConfig(base=str(tiny_model), tuning="full")).model
    assert tuned_parameters(model).keys() == dict(model.named_parameters()).keys()


def test_adapter_tuning_moves_what_is_trainable(tiny_model: Path) -> None:
    config = ModelConfig(base=str(tiny_model), lora=LoraConfig(rank=2))
    model = load_model(config, trainable=True).model
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(tuned_parameters(model)) == trainable
    assert len(trainable) == 8


def test_names_are_the_same_for_a_loaded_frozen_adapter(tiny_model: Path, tmp_path: Path) -> None:
    config = ModelConfig(base=str(tiny_model), lora=LoraConfig(rank=2))
    trained = load_model(config, trainable=True)
    save_checkpoint(trained, tmp_path)
    frozen = load_model(config, checkpoint=tmp_path).model
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert list(tuned_parameters(frozen)) == list(tuned_parameters(trained.model))
    with adapter_off(frozen):  # type: ignore[arg-type]
        assert list(tuned_parameters(frozen)) == list(tuned_parameters(trained.model))
