"""Loading, adapters and checkpoints: what is refused, what can be trained, and what plain libraries read back."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from everlearn.errors import ModelError
from everlearn.models import checking, descriptions, loading
from everlearn.recipe import LoraConfig, ModelConfig
from tests.tiny_models import ARCHITECTURES, TARGETS, make_tokenizer, save_tiny_model, save_with_eyes

IDS = torch.tensor([[1, 5, 9, 12, 7]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name) for name in ARCHITECTURES}


def config_of(folder: Path, architecture: str = "llama", **changes) -> ModelConfig:
    lora = LoraConfig(rank=4, targets=TARGETS[architecture])
    return ModelConfig(base=str(folder), device="cpu", **{"dtype": "float32", "lora": lora, **changes})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def stir(model) -> None:
    """Moves all trainable weights, as training would."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_changes_nothing_yet_and_alone_is_trainable(folders, architecture) -> None:
    config = config_of(folders[architecture], architecture)
    checking.check_model(config)
    base = loading.load_model(config)
    tuned = loading.load_model(config, trainable=True)
    trainable = [name for name, weight in tuned.model.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert torch.equal(logits(base.model), logits(tuned.model))
    assert tuned.context_length == 256


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_checkpoint_is_carried_on_and_read_by_plain_peft(folders, architecture, tmp_path) -> None:
    from peft import AutoPeftModelForCausalLM

    config = config_of(folders[architecture], architecture)
    first = loading.load_model(config, trainable=True)
    stir(first.model)
    loading.save_checkpoint(first, tmp_path)
    second = loading.load_model(config, checkpoint=tmp_path, trainable=True)
    plain = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    assert not list((tmp_path / "adapter").glob("tokenizer*")), "the base has it: 33 MB of Gemma's in every stage"
    assert torch.equal(logits(first.model), logits(second.model))
    assert torch.allclose(logits(plain), logits(second.model), atol=1e-6)
    names = {name for name, weight in second.model.named_parameters() if weight.requires_grad}
    assert names == {name for name, weight in first.model.named_parameters() if weight.requires_grad}
    assert second.fingerprint != second.base_fingerprint == first.base_fingerprint


def test_an_adapter_names_its_targets_in_one_order(folders, tmp_path) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = config_of(folders["llama"], lora=LoraConfig(rank=2, targets=names))
    loading.save_checkpoint(loading.load_model(config, trainable=True), tmp_path)
    loading.save_checkpoint(loading.load_model(config, checkpoint=tmp_path, trainable=True), tmp_path / "next")
    for folder in (tmp_path, tmp_path / "next"):
        assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"] == sorted(names)


def test_the_base_within_a_tuned_model_is_the_base_and_the_adapter_comes_back(folders, tmp_path) -> None:
    config = config_of(folders["llama"])
    tuned = loading.load_model(config, trainable=True)
    stir(tuned.model)
    loading.save_checkpoint(tuned, tmp_path)
    loaded = loading.load_model(config, checkpoint=tmp_path)
    before = logits(loaded.model)
    with loading.base_of(loaded) as base:
        assert torch.equal(logits(base.model), logits(loading.load_model(config).model))
        assert base.fingerprint == loading.base_fingerprint(config)
    assert torch.equal(logits(loaded.model), before)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


def test_full_tuning_trains_all_weights_and_plain_transformers_reads_the_checkpoint(folders, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = config_of(folders["llama"], tuning="full")
    tuned = loading.load_model(config, trainable=True)
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in tuned.model.parameters())
    stir(tuned.model)
    loading.save_checkpoint(tuned, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    again = loading.load_model(config, checkpoint=tmp_path)
    assert torch.equal(logits(plain), logits(tuned.model))
    assert torch.equal(logits(again.model), logits(tuned.model))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token == "</s>"


def test_adapter_matrices_are_float32_on_a_bfloat16_base(folders) -> None:
    tuned = loading.load_model(config_of(folders["llama"], dtype="bfloat16"), trainable=True)
    kinds = {"lora_" in name: weight.dtype for name, weight in tuned.model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_has_the_shape_that_the_recipe_gives_and_needs_no_correction(folders, architecture) -> None:
    lora = LoraConfig(rank=3, alpha=5, dropout=0.25, targets=TARGETS[architecture])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fan_in_fan_out.*")
        warnings.simplefilter("error", FutureWarning)
        tuned = loading.load_model(config_of(folders[architecture], lora=lora), trainable=True)
    made = tuned.model.peft_config["default"]
    assert (made.r, made.lora_alpha, made.lora_dropout) == (3, 5, 0.25)


def test_a_target_is_a_whole_name_or_path(folders) -> None:
    one = "model.layers.0.self_attn.q_proj"
    tuned = loading.load_model(config_of(folders["llama"], lora=LoraConfig(targets=[one])), trainable=True)
    assert {name.split(".lora_")[0] for name, weight in tuned.model.named_parameters() if weight.requires_grad} == {
        f"base_model.model.{one}"
    }
    with pytest.raises(ModelError, match="has no linear layer 'proj'"):
        checking.check_model(config_of(folders["llama"], lora=LoraConfig(targets=["q_proj", "proj"])))


def test_an_adapter_on_nothing_is_refused(folders) -> None:
    with pytest.raises(ModelError, match=r"lora\.targets is empty: use some of .*q_proj.*or 'all-linear'"):
        checking.check_model(config_of(folders["llama"], lora=LoraConfig(targets=[])))


def test_all_linear_takes_every_layer_but_the_head(folders) -> None:
    config = ModelConfig(base=str(folders["gpt_neox"]), device="cpu", lora=LoraConfig(targets="all-linear"))
    tuned = loading.load_model(config, trainable=True)
    names = {
        name.split(".lora_")[0].rpartition(".")[2] for name, _ in tuned.model.named_parameters() if "lora_" in name
    }
    assert names == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_the_adapter_is_on_the_language_model_alone(tmp_path, targets) -> None:
    lora = LoraConfig(targets=targets)
    config = ModelConfig(base=str(save_with_eyes(tmp_path / "base")), device="cpu", lora=lora)
    checking.check_model(config)
    tuned = loading.load_model(config, trainable=True)
    names = [name for name, weight in tuned.model.named_parameters() if weight.requires_grad]
    assert names
    assert all("language_model" in name for name in names)
    stir(tuned.model)
    loading.save_checkpoint(tuned, tmp_path)
    again = loading.load_model(config, checkpoint=tmp_path)
    assert torch.equal(logits(again.model), logits(tuned.model))


def test_an_adapter_that_the_model_cannot_have_is_refused_before_training(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    words = make_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    settings = Qwen3MoeConfig(vocab_size=len(words), head_dim=16, intermediate_size=16, **sizes, **experts)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    for dropout, refused in ((0.1, True), (0.0, False)):
        lora = LoraConfig(targets="all-linear", dropout=dropout)
        config = ModelConfig(base=str(tmp_path), device="cpu", lora=lora)
        if refused:
            with pytest.raises(ModelError, match=r"lora\.dropout"):
                checking.check_model(config)
        else:
            checking.check_model(config)


def test_an_adapter_is_read_onto_the_models_own_device(folders, tmp_path, monkeypatch) -> None:
    from peft.peft_model import PeftModel

    seen = []
    load = PeftModel.load_adapter

    def spy(self, *arguments, **options):
        seen.append(options["torch_device"])
        return load(self, *arguments, **options)

    config = config_of(folders["llama"])
    loading.save_checkpoint(loading.load_model(config, trainable=True), tmp_path)
    monkeypatch.setattr(PeftModel, "load_adapter", spy)
    loading.load_model(config, checkpoint=tmp_path)
    assert seen == ["cpu"]


@pytest.mark.parametrize(("architecture", "there"), [("gpt2", "c_attn"), ("gpt_neox", "query_key_value")])
def test_targets_that_the_model_lacks_are_refused_with_those_it_has(folders, architecture, there) -> None:
    config = config_of(folders[architecture], "llama")
    with pytest.raises(ModelError, match=f"'q_proj'.*{there}"):
        checking.check_model(config)


def test_the_first_matrices_depend_on_the_seed_alone(folders) -> None:
    config = config_of(folders["llama"])
    before = torch.random.get_rng_state()
    models = [loading.load_model(config, trainable=True, seed=seed).model for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    first, same, other = (
        torch.cat([w.flatten() for n, w in model.named_parameters() if "lora_A" in n]) for model in models
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_tokenizer_without_pad_uses_its_end_token(tmp_path) -> None:
    tokenizer = loading.load_tokenizer(config_of(save_tiny_model(tmp_path, pad=False)))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def test_a_tokenizer_without_end_token_is_refused_with_the_remedy(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.eos_token"):
        checking.check_model(config_of(save_tiny_model(tmp_path, eos=False)))


def test_the_end_token_of_the_generation_configuration_is_taken(tmp_path) -> None:
    folder = save_tiny_model(tmp_path, eos=False)
    tokenizer = make_tokenizer(eos=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</s>"]})
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert loading.load_tokenizer(config_of(folder)).eos_token == "</s>"


def test_the_first_end_token_of_the_generation_configuration_that_the_tokenizer_added_is_taken(tmp_path) -> None:
    folder = save_tiny_model(tmp_path, eos=False)
    tokenizer = make_tokenizer(eos=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["</s>"]})
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [50, 2]}))
    assert loading.load_tokenizer(config_of(folder)).eos_token == "</s>"


def test_a_damaged_configuration_is_refused_with_the_remedy(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "damaged"))
    (folder / "config.json").write_text("{")
    with pytest.raises(
        ModelError, match=r"config\.json cannot be used \(it is not JSON: .*\): download or save it again"
    ):
        checking.check_model(config_of(folder))


def test_the_context_is_that_of_the_language_model_and_of_a_state_space_model_unbounded(tmp_path) -> None:
    from transformers import AutoConfig, MambaConfig

    save_with_eyes(tmp_path)
    settings = AutoConfig.from_pretrained(tmp_path)
    settings.text_config.max_position_embeddings = 77
    assert descriptions.context_of(settings) == 77
    assert descriptions.context_of(MambaConfig()) == 1 << 20


def test_a_model_that_needs_its_own_code_is_refused(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "own"))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.py--Own"}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="code of its own"):
        checking.check_model(config_of(folder))


def changed(folder: Path, target: Path, **settings) -> Path:
    """A copy whose configuration has other values."""
    shutil.copytree(folder, target)
    stored = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(stored | settings))
    return target


@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_quantized_weights_are_refused_before_they_are_read(folders, tmp_path, kind) -> None:
    folder = changed(folders["llama"], tmp_path / kind, quantization_config={"quant_method": kind, "bits": 4})
    with pytest.raises(ModelError, match=rf"quantized \({kind}\)"):
        checking.check_model(config_of(folder))


def test_a_memory_that_generation_cannot_carry_on_is_refused(folders, tmp_path) -> None:
    from transformers import MambaConfig

    folder = Path(shutil.copytree(folders["llama"], tmp_path / "mamba"))
    MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=4).save_pretrained(folder)
    with pytest.raises(ModelError, match="past_key_values"):
        checking.check_model(config_of(folder, tuning="full"))


def test_tokens_without_embedding_are_refused_where_text_can_become_them(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "more"))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["elephant"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="use the tokenizer"):
        checking.check_model(config_of(folder))


def test_an_end_token_without_embedding_is_refused(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "end"))
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="use the tokenizer"):
        checking.check_model(config_of(folder))


def test_a_special_token_without_embedding_does_no_harm(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "image"))
    tokenizer = make_tokenizer(pad=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= 116
    tokenizer.save_pretrained(folder)
    checking.check_model(config_of(folder))
    assert loading.load_tokenizer(config_of(folder)).pad_token == "</s>"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("unable to mmap 99 bytes from file <m>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        SafetensorError("IO Error: Cannot allocate memory (os error 12)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["from_pretrained", "to"])
def test_running_out_of_memory_is_no_fault_of_the_files(folders, monkeypatch, error, where) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedModel

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM if where == "from_pretrained" else PreTrainedModel, where, fail)
    with pytest.raises(ModelError) as caught:
        loading.load_model(config_of(folders["llama"]))
    told = str(caught.value)
    assert "because memory ran out (" in told
    assert "close other programs" in told
    assert "download" not in told
    assert "\n" not in told


def test_shards_in_float16_with_tied_embeddings_are_read_trained_and_written(folders, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    save_tiny_model(tmp_path / "base", "qwen3", tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    model.half().save_pretrained(tmp_path / "base", max_shard_size="10KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    config = config_of(tmp_path / "base", "qwen3", tuning="full")
    tuned = loading.load_model(config, trainable=True)
    stir(tuned.model)
    loading.save_checkpoint(tuned, tmp_path)
    again = loading.load_model(config, checkpoint=tmp_path).model
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert again.dtype == torch.float32
    assert torch.equal(logits(again), logits(tuned.model))


def test_an_encoder_is_refused(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "t5"))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ModelError, match="no causal language model"):
        checking.check_model(config_of(folder))


def test_damaged_and_incomplete_weights_are_refused(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(folders["llama"], tmp_path / "damaged"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        loading.load_model(config_of(folder))
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(ModelError, match=r"model\.safetensors is no readable safetensors file"):
        loading.load_model(config_of(folder))


def test_a_checkpoint_of_the_other_kind_or_of_another_base_is_refused(folders, tmp_path) -> None:
    with pytest.raises(ModelError, match="adapter/ folder"):
        loading.load_model(config_of(folders["llama"]), checkpoint=tmp_path)
    loading.save_checkpoint(loading.load_model(config_of(folders["llama"]), trainable=True), tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        loading.load_model(config_of(folders["gpt2"], "gpt2"), checkpoint=tmp_path)


def test_an_incomplete_or_damaged_adapter_is_refused_with_the_remedy(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    config = config_of(folders["llama"])
    loading.save_checkpoint(loading.load_model(config, trainable=True), tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    damage = r"does not fit this base model or is damaged \(.+\): use the base .* run 'everlearn resume'"
    save_file({name: values[:1] for name, values in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match=damage):
        loading.load_model(config, checkpoint=tmp_path)
    weights.write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(ModelError, match=r"no readable safetensors file \(.+\): delete it and run 'everlearn resume'"):
        loading.load_model(config, checkpoint=tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors: .*delete it and run 'everlearn resume'"):
        loading.load_model(config, checkpoint=tmp_path)


def test_another_gpu_than_the_first_is_refused_with_the_remedy(folders) -> None:
    with pytest.raises(ModelError, match="CUDA_VISIBLE_DEVICES to 1"):
        checking.check_model(config_of(folders["llama"]).model_copy(update={"device": "cuda:1"}))


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_transformers_are_off_while_it_works_and_then_as_before(shown) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        switch[shown]()
        with loading.without_bars():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() is shown
    finally:
        switch[before]()


def test_an_absent_device_is_refused(folders) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="not available"):
        checking.check_model(config_of(folders["llama"]).model_copy(update={"device": "cuda"}))


@pytest.mark.parametrize(
    ("tuning", "dtype", "is_native", "loaded_as"),
    [
        ("lora", "auto", True, torch.bfloat16),
        ("lora", "auto", False, torch.float32),
        ("lora", "float32", True, torch.float32),
        ("full", "auto", True, torch.float32),
        ("full", "bfloat16", False, torch.bfloat16),
    ],
)
def test_frozen_weights_are_bfloat16_where_the_device_multiplies_it(
    folders, monkeypatch: pytest.MonkeyPatch, tuning: str, dtype: str, is_native: bool, loaded_as: torch.dtype
) -> None:
    monkeypatch.setattr(loading, "has_native_bfloat16", lambda device: is_native)
    assert loading.load_model(config_of(folders["llama"], tuning=tuning, dtype=dtype)).model.dtype == loaded_as


def test_a_model_beyond_the_memory_is_refused_with_what_takes_less(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = loading.load_model(ModelConfig(base=str(tiny_model), tuning="full")).model.num_parameters()
    full = ModelConfig(base=str(tiny_model), tuning="full")
    lora = ModelConfig(base=str(tiny_model), dtype="float32")
    monkeypatch.setattr(checking, "total_bytes", lambda device: weights * 4)
    for config in (full, lora):
        checking.check_model(config)
    checking.check_model(lora, trains=True)
    with pytest.raises(ModelError, match=r"full tuning of 0\.0 billion weights in float32 takes .* set model\.tuning"):
        checking.check_model(full, trains=True)
    monkeypatch.setattr(checking, "total_bytes", lambda device: weights * 10)
    checking.check_model(full, trains=True, optimizer="adamw_8bit")
    with pytest.raises(ModelError, match="full tuning of"):
        checking.check_model(full, trains=True)
    monkeypatch.setattr(checking, "total_bytes", lambda device: weights * 4 - 1)
    with pytest.raises(
        ModelError, match=r"a model of 0\.0 .* cpu has 0: set model\.dtype to bfloat16, or set model\.quan"
    ):
        checking.check_model(lora)
    checking.check_model(lora.model_copy(update={"dtype": "bfloat16"}))
    monkeypatch.setattr(checking, "total_bytes", lambda device: weights * 2 - 1)
    with pytest.raises(ModelError, match=r"in bfloat16 .* cpu has 0: set model\.quantization to nf4, or choose a sm"):
        checking.check_model(lora.model_copy(update={"dtype": "bfloat16"}))
