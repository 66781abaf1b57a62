"""Adapters from elsewhere: what is read of them, and what is refused before anything of theirs is opened."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from everlearn.errors import ModelError
from everlearn.models.loading import load_model, save_checkpoint
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.runs.checkpoint import checkpoint_fingerprint
from tests.malformed.model_folders import Fault, faults_of, spoil
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    base = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return ModelConfig(base=str(base), device="cpu", dtype="float32", lora=LoraConfig(rank=2))


@pytest.fixture(scope="module")
def adapter(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    save_checkpoint(load_model(config, trainable=True), folder)
    for file in (folder / "adapter").iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    return folder / "adapter"


def refusal(config: ModelConfig, folder: Path) -> str | None:
    told = None
    try:
        load_model(config, checkpoint=folder, trainable=True)
    except ModelError as error:
        told = str(error)
    assert "\n" not in (told or "")
    return told


def test_no_wrong_value_of_an_adapter_ends_in_a_traceback(config: ModelConfig, adapter: Path, tmp_path: Path) -> None:
    told: list[str | None] = []
    for fault in list(faults_of(adapter))[::13]:
        try:
            told.append(refusal(config, spoil(adapter, fault, tmp_path / "spoilt")))
        except Exception as error:  # says which
            pytest.fail(f"{fault} ends in {type(error).__name__}: {error}")
    assert len(told) > 50
    assert sum(one is not None for one in told) > len(told) // 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("megatron_config", {"a": 1}),
        ("megatron_core", "antigravity"),
        ("corda_config", {"cache_file": "x.bin"}),
        ("lora_ga_config", {"cache_file": "x.bin"}),
        ("eva_config", {"rho": 2}),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "corda"),
        ("peft_type", "XLORA"),
        ("peft_type", None),
        ("r", 10**12),
        ("r", 0),
        ("r", "2"),
    ],
)
def test_settings_that_open_files_or_change_the_base_are_refused(
    config: ModelConfig, adapter: Path, tmp_path: Path, key: str, value: object
) -> None:
    spoilt = spoil(adapter, Fault("adapter_config.json", (key,), value), tmp_path / "spoilt")
    assert f"adapter_config.json: {key} is" in (refusal(config, spoilt) or "")


def test_the_base_that_an_adapter_names_is_not_followed(config: ModelConfig, adapter: Path, tmp_path: Path) -> None:
    key = "base_model_name_or_path"
    assert (
        refusal(config, spoil(adapter, Fault("adapter_config.json", (key,), "/nowhere"), tmp_path / "other")) is None
    )


def test_a_pickled_adapter_is_not_opened(config: ModelConfig, adapter: Path, tmp_path: Path) -> None:
    class Opened:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("a pickle was opened",))

    for name in ("adapter_model.bin", "adapter_model.safetensors"):
        folder = Path(shutil.copytree(adapter, tmp_path / name))
        (folder / "adapter_model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Opened()))
        assert "adapter_model.safetensors" in (refusal(config, folder) or "")


def test_an_adapters_settings_count_in_its_fingerprint(adapter: Path, tmp_path: Path) -> None:
    other = spoil(adapter, Fault("adapter_config.json", ("lora_alpha",), 7), tmp_path / "other")
    assert checkpoint_fingerprint(other) != checkpoint_fingerprint(adapter)
    same = Path(shutil.copytree(adapter, tmp_path / "same"))
    assert checkpoint_fingerprint(same) == checkpoint_fingerprint(adapter)
    assert json.loads((same / "adapter_config.json").read_text())["r"] == 2
