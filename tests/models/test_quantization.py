"""A base in four or eight bits: what is quantized, what is told, and who is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.crew import Crew
from everlearn.errors import MissingExtraError, ModelError, RecipeError
from everlearn.generation.engines import refuse_unserved
from everlearn.models import checking, loading
from everlearn.models.quantization import (
    BYTES,
    check_quantization,
    keep_quantized_layout,
    loaded_bytes,
    settings_of,
)
from everlearn.models.sources import base_fingerprint
from everlearn.models.targets import linear_modules
from everlearn.recipe import LoraConfig, ModelConfig, make_recipe
from everlearn.runs import prepare
from tests.conftest import make_tiny_model

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 14, 3, 77]])


def config_of(folder: Path, **keys: object) -> ModelConfig:
    return ModelConfig(base=str(folder), dtype="float32", device="cpu", lora=LoraConfig(rank=4)).model_copy(
        update=keys
    )


def test_full_tuning_of_quantized_weights_is_refused_in_one_sentence() -> None:
    with pytest.raises(RecipeError, match=r"quantization: nf4 leaves weights that cannot be trained or merged into"):
        make_recipe({"model": {"tuning": "full", "quantization": "nf4"}})


def test_a_server_that_holds_the_whole_base_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"adapters trained over model\.quantization: int8 answer otherwise on it"):
        refuse_unserved(config_of(tiny_model, quantization="int8"))


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_quantization("none", CPU)
    with pytest.raises(
        MissingExtraError, match=r"^model\.quantization: nf4 needs .* bitsandbytes: run pip install 'everlearn\[gpu\]'"
    ):
        check_quantization("nf4", CPU)


def test_a_device_that_bitsandbytes_cannot_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: object, **__: object) -> None:
        raise NotImplementedError("no such kernel for this device")

    layers = dict.fromkeys(("Linear4bit", "Linear8bitLt"), no_kernel)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(nn=SimpleNamespace(**layers)))
    for quantization in BYTES:
        with pytest.raises(
            ModelError, match=rf"{quantization}: bitsandbytes cannot compute on cpu \(no .*\): set model\.quantization"
        ):
            check_quantization(quantization, CPU)


def test_several_processes_that_share_weights_are_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "crew", lambda: Crew(0, 2))
    for model, training, told in (
        ({"quantization": "nf4"}, {}, r"fsdp cannot take quantized layers apart \(model\.quantization: nf4\)"),
        ({"tuning": "full"}, {"optimizer": "adamw_8bit"}, r"adamw_8bit needs whole weights"),
    ):
        recipe = make_recipe({"model": model, "training": {"sharding": "fsdp", **training}, "method": "sequential"})
        with pytest.raises(RecipeError, match=told):
            prepare.refuse_unfit_sharding(recipe, prepare.assemble(recipe.method))


def test_quantized_weights_are_another_base_and_none_is_what_it_was(tiny_model: Path) -> None:
    plain = config_of(tiny_model)
    assert "quantization" not in plain.hashed()
    prints = {base_fingerprint(config_of(tiny_model, quantization=one)) for one in ("none", *BYTES)}
    assert len(prints) == 3


def test_the_memory_that_a_model_takes_knows_of_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "check_quantization", lambda *_: None)
    model = loading.skeleton(config_of(tiny_model))
    layers = sum(layer.weight.numel() for layer in linear_modules(model).values())
    whole, four, eight = (loaded_bytes(model, one, torch.float32) for one in ("none", "nf4", "int8"))
    assert whole == 4 * model.num_parameters()
    assert whole - eight == 3 * layers
    assert whole - four == pytest.approx((4 - 4.127 / 8) * layers, rel=1e-3)
    monkeypatch.setattr(checking, "total_bytes", lambda device: four)
    checking.check_model(config_of(tiny_model, quantization="nf4"), trains=True)
    with pytest.raises(ModelError, match=r"weights in int8 takes .* set model\.quantization to nf4, or choose"):
        checking.check_model(config_of(tiny_model, quantization="int8"), trains=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters_sit_on_quantized_layers_and_all_else_stays_whole(
    tiny_model: Path, gpt2: Path, tmp_path: Path, quantization: str, architecture: str
) -> None:
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = {"llama": tiny_model, "gpt2": gpt2}[architecture]
    config = checking.check_model(config_of(folder, quantization=quantization), trains=True)
    loaded = loading.load_model(config, trainable=True)
    named = dict(loaded.model.named_parameters())
    stored = {"nf4": torch.uint8, "int8": torch.int8}[quantization]
    quantized = {name for name, weight in named.items() if weight.dtype == stored}
    assert len(quantized) == len(linear_modules(loading.skeleton(config)))
    assert {named[name].dtype for name in set(named) - quantized} == {torch.float32}
    assert all(("lora_" in name) == weight.requires_grad for name, weight in named.items())
    for name, weight in named.items():  # B begins at 0
        if "lora_B" in name:
            weight.data.fill_(0.05)
    loading.save_checkpoint(loaded, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**settings_of(quantization, "float32"))
    )
    keep_quantized_layout(plain)
    assert torch.allclose(
        PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()(IDS).logits, loaded.model(IDS).logits
    )
    alone = loading.load_model(config)
    exact = loading.load_model(config_of(folder))
    assert not torch.equal(alone.model(IDS).logits, exact.model(IDS).logits)
    assert torch.nn.functional.cosine_similarity(alone.model(IDS).logits, exact.model(IDS).logits, -1).min() > 0.9


def test_weights_stay_as_they_are_on_a_processor_for_which_bitsandbytes_would_pack_them_anew(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = pytest.importorskip("bitsandbytes").nn.modules
    monkeypatch.setattr(layers, "has_avx512bf16", lambda: True)
    assert layers.Linear4bit(64, 64).support_avx512bf16_for_cpu
    config = checking.check_model(config_of(tiny_model, quantization="nf4"), trains=True)
    loaded = loading.load_model(config, trainable=True)
    loaded.model.eval()
    with torch.no_grad():
        measured = loaded.model(IDS).logits
    loss = loaded.model.train()(IDS, labels=IDS)
    assert torch.equal(loss.logits, measured)
    loss.loss.backward()
    gradients = [weight.grad for name, weight in loaded.model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_weights_that_are_no_numbers_are_refused_before_they_are_quantized(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    broken = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[broken][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"tensor {broken} holds numbers that are infinite or none"):
        loading.load_model(config_of(tmp_path, quantization="nf4"))
