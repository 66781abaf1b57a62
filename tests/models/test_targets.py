"""Where adapters sit: what `auto` means for an architecture, and the largest rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everlearn.errors import ModelError
from everlearn.models import targets
from everlearn.models.adapters import attach_adapter
from everlearn.models.checking import check_model
from everlearn.models.loading import load_model
from everlearn.recipe import LoraConfig, ModelConfig
from tests.tiny_models import ARCHITECTURES, TARGETS, save_tiny_model, save_with_eyes

PUBLISHED = ["q_proj", "v_proj"]
QUERY_KEY_VALUE = ["key", "query", "value"]
LATENT = ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"]
CHOSEN = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi"], PUBLISHED),
    **dict.fromkeys(["opt", "olmo2", "gpt_neo", "gptj", "stablelm", "mixtral", "gpt_oss", "bart"], PUBLISHED),
    **dict.fromkeys(["granite", "smollm3", "glm4", "cohere2", "starcoder2", "biogpt", "xglm"], PUBLISHED),
    "gpt2": ["c_attn"],
    "gpt_bigcode": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "bloom": ["query_key_value"],
    "falcon": ["query_key_value"],
    "codegen": ["qkv_proj"],
    "mpt": ["Wqkv"],
    "bert": ["query", "value"],
    "phi3": ["o_proj", "qkv_proj"],
    "persimmon": ["dense", "query_key_value"],
    "deepseek_v3": LATENT,
    "minicpm3": LATENT,
    "ctrl": ["Wk", "Wq", "Wv", "dense"],
    "rembert": ["attention.output.dense", *QUERY_KEY_VALUE],
    "jetmoe": ["kv_proj"],
}
"""By the sizes that Transformers has, two layers each."""


def small(kind: str):
    """The model of an architecture with two layers, without weights."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = CONFIG_MAPPING[kind]()
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if hasattr(settings, key):
            setattr(settings, key, 2)
    for key in ("layer_types", "mlp_layer_types", "attention_types"):
        if isinstance(getattr(settings, key, None), list):
            setattr(settings, key, getattr(settings, key)[:2] if key != "attention_types" else [[["global"], 2]])
    if kind == "gpt_neo":
        settings.attention_layers = ["global", "global"]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings)


@pytest.mark.parametrize("kind", CHOSEN)
def test_auto_fits_every_architecture(kind: str) -> None:
    model = small(kind)
    assert targets.auto_targets(model) == CHOSEN[kind]
    tuned = attach_adapter(model, LoraConfig(), seed=0)
    layers = {name.split(".lora_")[0] for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert layers
    assert not any("lm_head" in name or "router" in name for name in layers)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_auto_means_is_the_same_as_naming_it(architecture: str, tmp_path: Path) -> None:
    base = str(save_tiny_model(tmp_path / "tiny", architecture))
    auto = ModelConfig(base=base, device="cpu")
    named = auto.model_copy(update={"lora": LoraConfig(targets=TARGETS[architecture])})
    assert check_model(auto) == check_model(named) == named
    first, second = (
        {name for name, weight in load_model(one, trainable=True).model.named_parameters() if weight.requires_grad}
        for one in (auto, named)
    )
    assert first == second


def test_full_tuning_leaves_the_published_names_in_its_fingerprint(tmp_path: Path) -> None:
    config = ModelConfig(base=str(save_tiny_model(tmp_path / "tiny", "gpt2")), device="cpu", tuning="full")
    assert check_model(config).lora.targets == PUBLISHED


def test_auto_stays_within_the_language_model(tmp_path: Path) -> None:
    config = ModelConfig(base=str(save_with_eyes(tmp_path)), device="cpu", lora=LoraConfig(rank=4))
    assert check_model(config).lora.targets == PUBLISHED
    tuned = load_model(config, trainable=True).model
    assert not any("vision" in name for name, weight in tuned.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize("rank", [33, 10**6, 10**12, 10**18])
@pytest.mark.parametrize("chosen", ["auto", "all-linear", ["q_proj"]])
def test_a_rank_that_no_layer_can_have_is_one_sentence(tmp_path: Path, rank: int, chosen: object) -> None:
    base = save_tiny_model(tmp_path / "tiny")
    config = ModelConfig(base=str(base), device="cpu", lora=LoraConfig(rank=rank, targets=chosen))
    for use in (check_model, lambda one: load_model(one, trainable=True)):
        with pytest.raises(ModelError, match=r"lora\.rank 1?[03]+ is more .*: give at most 32 \(that of .*\)\.$"):
            use(config)


def test_a_rank_that_some_layers_can_have_is_taken(tmp_path: Path) -> None:
    config = ModelConfig(base=str(save_tiny_model(tmp_path / "tiny")), device="cpu", lora=LoraConfig(rank=32))
    check_model(config)  # v_proj is 16 wide
